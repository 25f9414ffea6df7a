"""The output file of many requests: never overwritten, written a whole line at a time, and read again to go on with it."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from shardwise.cli.lines import Defaults, read_lines
from shardwise.errors import ShardwiseError, UserError

Sink = Callable[[bytes], None]
"""Takes one line with its end."""

SYNC_S = 1.0
"""At most so much work is lost when the machine stops; when only the program does, none is."""


@dataclass(frozen=True, slots=True)
class Results:
    """What an output file holds already: `done` lines of the input, `failed` of them with an error, in `size` bytes that are
    whole lines, of `seen`. `names`: lines by their ids. `lines` of the input are still to be answered."""

    done: frozenset[int] = frozenset()
    failed: int = 0
    size: int | None = None
    seen: int = 0
    names: Mapping[str | int, int] = field(default_factory=dict)
    lines: int | None = None

    @contextmanager
    def writing(self, path: str) -> Iterator[Sink]:
        """The file, made new where there was none, cut to its whole lines and gone on with otherwise."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if self.size is None else 0)
        try:
            file = os.open(path, flags, 0o644)
        except OSError as error:
            raise UserError(f"--output {path}: {error.strerror}; give a new file") from None
        try:
            with _told(path):
                _lock(file, path)
                if self.size is not None:
                    if os.fstat(file).st_size != self.seen:
                        raise UserError(f"--output {path} was changed by another run just now; start this one again")
                    os.ftruncate(file, self.size)
                _sync_folder(path)
            yield _Writer(file, path)
        finally:
            with _told(path):
                os.fsync(file)
                os.close(file)


class _Writer:
    def __init__(self, file: int, path: str) -> None:
        self._file, self._path = file, path
        self._synced = time.monotonic()

    def __call__(self, line: bytes) -> None:
        with _told(self._path):
            left = memoryview(line)
            while left:
                left = left[os.write(self._file, left) :]
            if time.monotonic() - self._synced >= SYNC_S:
                os.fsync(self._file)
                self._synced = time.monotonic()


def standard_output() -> AbstractContextManager[Sink]:
    """Standard output, each line at once."""

    def write(line: bytes) -> None:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()

    return nullcontext(write)


def open_results(path: str, source: BinaryIO | None, name: str, defaults: Defaults, *, resume: bool) -> Results:
    """What is done of the input `source`, called `name`, without changing anything. UserError where the output exists and is
    not to be gone on with, or is of another input."""
    output = Path(path)
    if path != "-" and not resume and (output.exists() or output.is_symlink()):
        raise UserError(f"--output {path} exists; add --resume to go on with it, or give a new file")
    if path != "-" and not output.parent.is_dir():
        raise UserError(f"--output {path}: there is no folder {str(output.parent)!r}; make it, or give another file")
    found = _read(output) if resume and output.exists() else None
    digests = {} if found is None else found.digests
    lines = 0
    for line in read_lines(source, defaults) if source is not None else ():
        lines += 1
        if (digest := digests.pop(line.number, None)) is not None and digest != line.digest:
            raise UserError(
                f"--resume: {path} has an answer to line {line.number}, which in {name} is another one, or the model or the "
                "sampling flags are others; give what it was made with, or a new --output"
            )
    if digests:
        raise UserError(
            f"--resume: {path} has an answer to line {min(digests)}, which {name} does not have; give a new --output"
        )
    if found is None:
        return Results(lines=lines)
    return Results(frozenset(found.done), found.failed, found.size, found.seen, found.names, lines - len(found.done))


@dataclass(slots=True)
class _Found:
    digests: dict[int, str] = field(default_factory=dict)
    done: list[int] = field(default_factory=list)
    names: dict[str | int, int] = field(default_factory=dict)
    failed: int = 0
    size: int = 0
    seen: int = 0


def _read(path: Path) -> _Found:
    """The lines of an output file. A last one without its end was being written when something ended the run."""
    found = _Found()
    try:
        with path.open("rb") as file:
            for count, line in enumerate(file, start=1):
                found.seen += len(line)
                if line.endswith(b"\n"):
                    _take(found, line, f"line {count} of {path}")
    except OSError as problem:
        raise UserError(f"--output {path}: {problem.strerror}; give a new file") from None
    return found


def _take(found: _Found, line: bytes, name: str) -> None:
    """Adds one whole line."""
    try:
        held = json.loads(line)
        number, digest, own, error = (held[key] for key in ("line", "input", "id", "error"))
    except (ValueError, KeyError, TypeError, RecursionError):
        number = digest = own = error = None
    if not isinstance(number, int) or not isinstance(digest, str) or not isinstance(own, str | int):
        raise UserError(f"--resume: {name} is not what this command writes; give a new --output")
    if number in found.digests:
        raise UserError(f"--resume: {name} answers line {number} again; give a new --output")
    found.digests[number] = digest
    found.done.append(number)
    found.failed += error is not None
    found.size += len(line)
    if error is None:
        found.names[own] = number


def _lock(file: int, path: str) -> None:
    """One run at a time; the lock ends with the process."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"--output {path} is being written by another run; wait for it, or give a new file") from None


def _sync_folder(path: str) -> None:
    """So that a new file has its name even when the machine stops."""
    folder = os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _told(path: str) -> Iterator[None]:
    """A full disk and the like in one line."""
    try:
        yield
    except OSError as error:
        raise ShardwiseError(f"--output {path}: {error.strerror}; what is there so far can be gone on with --resume") from None
