"""What a server is told at its start besides the model: names, keys, limits of time and size. The one table of limits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """Times in seconds, sizes in bytes. `api_keys` are never shown: `repr` leaves them out."""

    host: str = "127.0.0.1"
    port: int = 8000
    served_model_name: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = ()
    request_timeout_s: float = 600.0
    keep_alive_s: float = 15.0
    drain_timeout_s: float = 30.0
    max_body_bytes: int = 4 * 2**20
    max_choices: int = 128
    max_prompts: int = 2048
    trust_request_chat_template: bool = False

    def __repr__(self) -> str:
        return f"Settings({self.host}:{self.port})"
