"""What a server is told at its start besides the model: names, keys, limits of time and size. The one table of limits.

Flags, the documents' table and the checks all read it from here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any


def limit(default: object, text: str) -> Any:
    """A field that the table of limits shows, with its line of words."""
    return field(default=default, metadata={"limit": text})


@dataclass(frozen=True, slots=True)
class Settings:
    """Times in seconds, sizes in bytes. `api_keys` are never shown: `repr` leaves them out.

    `allowed_hosts` are names under which the server may be asked besides its own, `allow_origins` the pages of other servers
    whose scripts may ask; "*" in either takes any. `chat_template` is a file that goes before the model's own; requests
    without a seed draw theirs from `seed`, where there is one. `stores`: responses are kept for later requests.
    `profiler_dir` is the folder that ranks may record into. `verbose`: each request is logged.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    served_model_name: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    chat_template: str | None = None
    trust_request_chat_template: bool = False
    lenient: bool = False
    seed: int | None = None
    stores: bool = True
    profiler_dir: str | None = None
    log_format: str = "text"
    verbose: bool = False

    max_body_bytes: int = limit(4 * 2**20, "the body of a request (413)")
    max_depth: int = limit(32, "objects and lists within each other in a body (400)")
    max_values: int = limit(1_000_000, "values in the lists and objects of a body, all together: token ids, mostly (400)")
    max_parts: int = limit(100_000, "objects, lists and names in a body, all together (400)")
    max_header_bytes: int = limit(32 * 2**10, "the request line and all headers together (431)")
    max_headers: int = limit(100, "headers of a request (431)")
    max_url_bytes: int = limit(8 * 2**10, "the address in the request line (414)")
    max_choices: int = limit(128, "choices of one prompt: n, best_of (400)")
    max_prompts: int = limit(2048, "prompts of one request (400)")
    max_repeated_bytes: int = limit(
        16 * 2**20, "what several choices of one request repeat of its prompts, all together: echoed text, ids, scores (400)"
    )
    max_connections: int = limit(1024, "open connections; a further one is told 503 and closed")
    max_behind: int = limit(4096, "tokens of a choice that wait for a slow reader, before it is cut off")
    max_behind_bytes: int = limit(4 * 2**20, "what waits of one request for a slow reader, packed, before it is cut off")
    write_buffer_bytes: int = limit(64 * 2**10, "what is written to a connection and not yet taken, before its stream waits")
    head_timeout_s: float = limit(
        10.0, "from the first byte of a request, or a new connection, to the end of its headers (408)"
    )
    body_stall_s: float = limit(10.0, "without a byte of a body that has not ended (408)")
    body_timeout_s: float = limit(60.0, "for a whole body (408)")
    request_timeout_s: float = limit(600.0, "for a whole request, its wait in the queue included (504)")
    write_timeout_s: float = limit(30.0, "during which a reader takes nothing, before it is cut off")
    idle_timeout_s: float = limit(75.0, "between two requests on a connection, before it is closed")
    keep_alive_s: float = limit(15.0, "without a token, before a stream gets a comment that keeps it open")
    max_kept: int = limit(1000, "responses that are kept, of all keys together; the oldest goes")
    max_kept_bytes: int = limit(64 * 2**20, "what is kept, as JSON; a response counts with all the conversation before it")
    kept_s: float = limit(3600.0, "after a response was made, before it is kept no longer")
    max_profile_steps: int = limit(50, "steps that ranks record after /start_profile, in about 2.5 KB of memory an operation")
    profile_timeout_s: float = limit(60.0, "from /start_profile on, before the recording ends by itself")
    drain_timeout_s: float = limit(30.0, "for open requests to finish after SIGTERM")

    def __repr__(self) -> str:
        return f"Settings({self.host}:{self.port})"

    def limits(self) -> list[tuple[str, float, str]]:
        """(name, value, what it limits) of each, in order."""
        shown = (each for each in fields(self) if "limit" in each.metadata)
        return [(each.name, getattr(self, each.name), each.metadata["limit"]) for each in shown]
