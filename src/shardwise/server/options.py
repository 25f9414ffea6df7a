"""What `shardwise serve` takes besides the model and where it runs: one table of options. Flags, keys, variables and docs
are made from it. Knows no command line."""

from __future__ import annotations

import os
import re
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from shardwise.engine.memory import mib
from shardwise.engine.supervise import OnLoss
from shardwise.errors import UserError
from shardwise.server.settings import Settings
from shardwise.telemetry.log import FORMATS

MAX_WORKERS = 64
UNITS_S = {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0, "min": 60.0, "h": 3600.0}
UNITS_BYTES: dict[str, int] = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9} | {
    name + end: 2**power for name, power in (("k", 10), ("m", 20), ("g", 30)) for end in ("", "ib")
}


@dataclass(frozen=True, slots=True)
class Option:
    """One option. `name` is that of its field of `Settings`, where it has one. Without a `read`, it is a switch.

    `many`: it may be given several times, and `read` makes a tuple of each. `default` None means that of the field.
    """

    name: str
    flags: tuple[str, ...]
    help: str
    read: Callable[[str], Any] | None = None
    metavar: str = ""
    default: Any = None
    many: bool = False


def whole(least: int, most: int) -> Callable[[str], int]:
    """Reads a whole number within bounds."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d{1,18}", text.strip()):
            raise ArgumentTypeError(f"{text!r} is not a whole number{_link(text)}")
        if not least <= int(text) <= most:
            raise ArgumentTypeError(f"{int(text)} is out of range; it takes {least} to {most}")
        return int(text)

    return read


def _link(text: str) -> str:
    """Kubernetes sets SHARDWISE_PORT=tcp://10.0.0.1:8000 in every pod beside a service that is named shardwise."""
    return "; Kubernetes sets it for a service of that name: use `enableServiceLinks: false`" if text.startswith("tcp:") else ""


def seconds(text: str) -> float:
    """A time: 30, 0.5s, 5m, 1h."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if found is None or found[2] not in UNITS_S:
        raise ArgumentTypeError(f"{text!r} is not a time; write seconds, or 30s, 5m, 1h")
    return float(found[1]) * UNITS_S[found[2]]


def sizes(text: str) -> int:
    """A size in bytes: 65536, 64KiB, 4MiB."""
    found = re.fullmatch(r"(\d{1,15})\s*([a-z]*)", text.strip().lower())
    if found is None or found[2] not in UNITS_BYTES or not int(found[1]):
        raise ArgumentTypeError(f"{text!r} is not a size; write a number of bytes, or 64KiB, 4MiB")
    return int(found[1]) * UNITS_BYTES[found[2]]


def words(text: str) -> tuple[str, ...]:
    """A list with commas; empty places are none."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def origins(text: str) -> tuple[str, ...]:
    """A list of origins, as browsers send them."""
    for word in words(text):
        if word != "*" and not re.fullmatch(r"https?://[^/\s?#@]+", word):
            raise ArgumentTypeError(f"{word!r} is no origin; give scheme, host and port, as https://example.org:8443, or *")
    return words(text)


def secret(text: str) -> tuple[str, ...]:
    """A list of keys; what is wrong with one is said without it. None at all would leave the server open by mistake."""
    if not words(text):
        raise ArgumentTypeError("it is empty; give a key, or leave it out where none is wanted")
    for word in words(text):
        if not (word.isascii() and word.isprintable() and " " not in word):
            raise ArgumentTypeError("a key must be printable ASCII without spaces; check how it was copied")
    return words(text)


def hosts(text: str) -> tuple[str, ...]:
    """A list of names of machines, as they stand in an address."""
    for word in words(text):
        if word != "*" and not re.fullmatch(r"[A-Za-z0-9._\-\[\]:]+", word):
            raise ArgumentTypeError(f"{word!r} is no name of a machine; give it as in the address, without http://, or *")
    return words(text)


def budget(text: str) -> tuple[int, float]:
    """So many in so long a time: 5/60s."""
    count, _, time = text.partition("/")
    if not re.fullmatch(r"\d{1,6}", count.strip()) or not time:
        raise ArgumentTypeError(f"{text!r} is no budget; write how many in how long, as 5/60s")
    within = seconds(time)
    if not within:
        raise ArgumentTypeError(f"{text!r} is no budget: give a time above 0, as 5/60s")
    return int(count), within


def one_of(*choices: str) -> Callable[[str], str]:
    """Reads a word that is one of these."""

    def read(text: str) -> str:
        if text not in choices:
            raise ArgumentTypeError(f"{text!r} is not known; choose one of {', '.join(choices)}")
        return text

    return read


def folder(text: str) -> str:
    """A folder that is there and may be written to, with its whole path."""
    found = Path(text).expanduser().resolve()
    if not found.is_dir():
        raise ArgumentTypeError(f"there is no folder {text!r}; make it first, or name another one")
    if not os.access(found, os.W_OK | os.X_OK):
        raise ArgumentTypeError(f"this user may not write to {text!r}; name a folder of your own")
    return str(found)


SERVING = (
    Option("host", ("--host",), "address to listen on; one that others can reach needs --api-key (default: 127.0.0.1)",
           str, "ADDRESS"),
    Option("port", ("--port",), "port to listen on; 0 takes any that is free (default: 8000)", whole(0, 65535), "PORT"),
    Option("served_model_name", ("--served-model-name", "--alias"),
           "names that clients may ask for, the usual one first; * takes any (default: the model's own)", words, "A,B",
           many=True),
    Option("api_keys", ("--api-key",),
           "keys, one of which every request must bring (save for /health, /ready, /version, /docs); several may be given",
           secret, "KEY", many=True),
    Option("api_key_file", ("--api-key-file",), "a file with one key a line", Path, "FILE"),
    Option("insecure_no_key", ("--insecure-no-key",), "listen on an address that others can reach, without any key"),
    Option("allowed_hosts", ("--allowed-hosts",), "further names under which clients may reach it (default: its own address)",
           hosts, "NAME,..", many=True),
    Option("allow_origins", ("--allow-origin", "--allowed-origins"),
           "origins whose pages may ask it from a browser (default: none)", origins, "URL,..", many=True),
    Option("max_queue", ("--max-queue",),
           "requests that may wait; beyond, clients are told when to come again (default: 4 times --max-num-seqs)",
           whole(1, 10**6), "N"),
    Option("workers", ("--api-workers", "--api-server-count"),
           "processes that speak HTTP; more than one only for very many clients (default: 1)", whole(1, MAX_WORKERS), "N", 1),
    Option("on_rank_loss", ("--on-rank-loss",),
           "when a rank is lost: restart puts another process in its place, or, where that fails, goes on without; shrink goes "
           "on without it, and takes it back later; exit ends the server (default: restart)",
           one_of(*get_args(OnLoss)), "HOW", "restart"),
    Option("recovery_budget", ("--recovery-budget",),
           "ranks that may be lost in a time; with one more the server ends, exit code 70 (default: 5/60s)", budget, "N/TIME",
           (5, 60.0)),
    Option("on_engine_loss", ("--on-engine-loss",),
           "when the engine's process is killed or crashes: resume starts another one, within the recovery budget, where open "
           "requests go on; exit ends the server (default: resume)", one_of("resume", "exit"), "HOW", "resume"),
    Option("warm_spares", ("--warm-spares",),
           "processes that wait, with all imports done, to take a lost rank's place (default: 1)", whole(0, 64), "N", 1),
    Option("chat_template", ("--chat-template",), "a Jinja file instead of the model's own chat template", str, "FILE"),
    Option("trust_request_chat_template", ("--trust-request-chat-template",),
           "let requests bring chat templates of their own"),
    Option("lenient", ("--lenient",),
           "ignore what requests name that is not here (responses, stored prompts, tokens) or cannot be, in place of refusing "
           "them, and tell it in a header X-Ignored; embeddings are lists of numbers, also where base64 is asked for"),
    Option("no_store", ("--no-response-store",),
           "keep no responses for later requests; so it is too with several --api-workers, which share no memory"),
    Option("profiler_dir", ("--profiler-dir",),
           "a folder for traces of what the ranks do; turns /start_profile and /stop_profile on (default: none)",
           folder, "DIR"),
    Option("log_format", ("--log-format",),
           "text, or json: each line of all processes is an object with time, level, logger, message, pid and, where there is "
           "one, request_id (default: text)", one_of(*FORMATS), "FORMAT"),
    Option("seed", ("--seed", "--random-seed"),
           "requests without a seed draw theirs from this one, in the order they come (default: from chance)",
           whole(0, 2**32 - 1), "N"),
)  # fmt: skip


def limits() -> Iterator[Option]:
    """An option for each limit of `Settings`: `--max-depth` of `max_depth`, `--drain-timeout` of `drain_timeout_s`."""
    for name, value, text in Settings().limits():
        timed = name.endswith("_s")
        flag = f"--{name.removesuffix('_s').replace('_', '-')}"
        read = seconds if timed else sizes if name.endswith("_bytes") else whole(1, 10**9)
        usual = f"{value:g} s" if timed else mib(int(value)) if read is sizes else f"{value}"
        what = f"limit: {text} (default: {usual})"
        yield Option(name, (flag,), what, read, "SECONDS" if timed else "SIZE" if read is sizes else "N")


OPTIONS = (*SERVING, *limits())


def default(option: Option) -> Any:
    """What stands where nobody gives the option."""
    field = {field.name: field for field in fields(Settings)}.get(option.name)
    if option.default is not None or field is None:
        return False if option.read is None else option.default
    return [] if option.many else field.default


def settings(given: Mapping[str, Any]) -> Settings:
    """The settings that the options make, by `Option.name`; UserError for a key that is missing or cannot be read."""
    names = {field.name for field in fields(Settings)}
    keys = [*given["api_keys"], *(_keys_of(path) if (path := given["api_key_file"]) else ())]
    found = {name: value for name, value in given.items() if name in names and value is not None}
    for option in OPTIONS:
        if option.many and option.name in found:
            found[option.name] = tuple(dict.fromkeys(found[option.name]))
    if len(served := found["served_model_name"]) < len(given["served_model_name"]):
        raise UserError(f"--served-model-name has a name twice; served would be {', '.join(served)}: give each once")
    stores = not given["no_store"] and given["workers"] == 1
    return Settings(**{**found, "api_keys": tuple(dict.fromkeys(keys)), "stores": stores})


def _keys_of(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="ascii")
    except OSError as error:
        raise UserError(f"--api-key-file {path}: {error.strerror}; give a file with one key a line") from None
    except UnicodeDecodeError:
        raise UserError(f"--api-key-file {path}: a key must be printable ASCII; give one a line") from None
    lines = [line.strip() for line in text.splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise UserError(f"--api-key-file {path} holds no key; give one a line")
    if bad := [n for n, line in enumerate(lines, 1) if line in keys and not (line.isprintable() and " " not in line)]:
        raise UserError(f"--api-key-file {path}, line {bad[0]}: a key must be printable ASCII without spaces")
    return keys
