"""Whether a grammar compiles, and how dearly, found out in a process that can be killed: a stranger's schema may be a bomb.

That process opens the tokenizer once and forks for each grammar, so that time, memory and a crash are bounded by the kernel
and harm nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import signal
import sys
import threading
import time
import weakref
from dataclasses import asdict, astuple, replace
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen

from shardwise import children
from shardwise.engine.grammar import BROKEN, Grammars
from shardwise.errors import CheckpointError, RequestError, ShardwiseError
from shardwise.sched.structured import StructuredOutputs

CPU_S = 1.0  # to compile, and to write the first tokens
STEP_S = 0.1  # of that for one token
WRITE_S = 0.5  # and for all of them
WALL_S = 20.0  # on a machine so busy that its CPU time does not come
OPEN_S = 120.0  # for a tokenizer to open there
GROWTH_BYTES = 64 << 20  # what one grammar may take of memory
ROOM_BYTES = 512 << 20  # of address space, beyond what the tokenizer has
STACK_BYTES = 1536 << 10  # less than any thread has that is to compile it again
TOKENS = 128  # written at random, to see what they cost: an ambiguous grammar's take longer and longer
KEPT, KEPT_BYTES = 256, 4 << 20
"""Grammars that are known to have passed, and the memory that they may take together, as they were sent."""

TOO_DEAR = f"takes more than {CPU_S:g} s, or {GROWTH_BYTES >> 20} MiB, to compile; send a smaller one, with fewer repetitions"
_SOME = re.compile(rb"[^\0]")
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from shardwise.bound import bound; bound(int(sys.argv[-1])); "
    "from shardwise.engine.grammar_check import serve; serve()"
)


class GrammarCheck:
    """Says no to what does not compile, or is too dear. One for each model; safe to share between threads.

    The process is started with the first grammar, kept, and started anew if it is lost.
    """

    def __init__(self, folder: Path, vocab: int, most_bytes: int = KEPT_BYTES) -> None:
        self._folder, self._vocab, self._most = folder, vocab, most_bytes
        self._passed: dict[StructuredOutputs, int] = {}
        self._process: Popen[bytes] | None = None
        self._lock = threading.Lock()

    def __call__(self, wanted: StructuredOutputs) -> None:
        """RequestError, which says why, for a grammar that cannot be used. What has passed lately passes at once."""
        if wanted in self._passed:  # which does not wait for one that explodes
            return
        if wanted.opening is not None:  # what it costs shows in its first tokens, so they must not be those of the opening
            self(replace(wanted, opening=None))
        with self._lock:
            if error := self._asked(wanted):
                raise RequestError(error)
            self._passed[wanted] = size(wanted)
            while len(self._passed) > 1 and (len(self._passed) > KEPT or self.kept_bytes > self._most):
                self._passed.pop(next(iter(self._passed)))

    @property
    def kept_bytes(self) -> int:
        """What the grammars that have passed take."""
        return sum(self._passed.values())

    @property
    def pid(self) -> int | None:
        """Of the process, where it was started."""
        return None if self._process is None else self._process.pid

    def _asked(self, wanted: StructuredOutputs) -> str:
        """What the process says: why not, or nothing."""
        for _ in range(2):  # it may have been lost since the last one, by no fault of this one
            process, begun = self._started(), time.monotonic()
            answer = _line(process, json.dumps(asdict(wanted)), WALL_S)
            if answer is not None:
                return answer
            _end(process)
            if time.monotonic() - begun >= WALL_S:
                break
        return f"{wanted.said} {TOO_DEAR}"

    def _started(self) -> Popen[bytes]:
        """The process, its tokenizer open."""
        if self._process is None or self._process.poll() is not None:
            kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "PATH") if name in os.environ}  # no keys
            paths = json.dumps([path for path in sys.path if path])
            command = [sys.executable, "-I", "-c", _START, paths, str(self._folder.resolve()), str(self._vocab)]
            command.append(str(os.getpid()))
            self._process = children.started(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, cwd="/", env=kept)
            weakref.finalize(self, _end, self._process)
            if (reason := _line(self._process, None, OPEN_S)) != "":
                _end(self._process)
                raise CheckpointError(reason or "the process that checks structured_outputs did not start")
        return self._process


def size(wanted: StructuredOutputs) -> int:
    """How many bytes a grammar takes as it was sent, not compiled."""
    texts = (each for each in astuple(wanted) if isinstance(each, str))
    return sys.getsizeof(wanted) + sum(map(sys.getsizeof, (*texts, *(wanted.choice or ()))))


def _line(process: Popen[bytes], sent: str | None, limit_s: float) -> str | None:
    """The text that the process answers with; None if it has ended, or takes so long that it is ended."""
    assert process.stdin and process.stdout
    watch = threading.Timer(limit_s, process.kill)
    watch.start()
    try:
        if sent is not None:
            process.stdin.write(sent.encode() + b"\n")
            process.stdin.flush()
        answer = process.stdout.readline()
    except OSError:
        answer = b""
    finally:
        watch.cancel()
    return json.loads(answer) if answer.endswith(b"\n") else None


def _end(process: Popen[bytes]) -> None:
    with contextlib.suppress(OSError), process:  # which closes the pipes and waits
        process.kill()


# --- in that process --------------------------------------------------------------------------------------------------


def serve() -> None:
    """A line when it is ready: why it is not, or nothing. Then JSON lines in, JSON lines out, until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    grammars = Grammars(Path(sys.argv[2]), int(sys.argv[3]))
    try:
        grammars.open()
    except ShardwiseError as error:
        _say(str(error))
        return
    _say("")
    for line in sys.stdin.buffer:
        wanted = StructuredOutputs(**json.loads(line))
        _say(_guarded(grammars, wanted))


def _say(text: str) -> None:
    sys.stdout.buffer.write(json.dumps(text).encode() + b"\n")
    sys.stdout.buffer.flush()


def _guarded(grammars: Grammars, wanted: StructuredOutputs) -> str:
    """What a child says of a grammar; and if it was killed, or crashed, that it is too dear."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            _bound()
            os.write(writing, _judged(grammars, wanted).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return said.decode() if status == 0 else f"{wanted.said} {TOO_DEAR}"


def _bound() -> None:
    """SIGPROF is left to its default, the end of the process: it stops even one long operation in the library."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = pages * resource.getpagesize() + ROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES, STACK_BYTES))  # which the kernel asks as the stack grows
    signal.setitimer(signal.ITIMER_PROF, CPU_S)


def _judged(grammars: Grammars, wanted: StructuredOutputs) -> str:
    """Why a grammar cannot be used; "" if it can."""
    before = _resident_bytes()
    try:
        matcher = grammars.compile(wanted).matcher(())
    except RequestError as error:
        return str(error)
    chance, tokens, slowest, spent = random.Random(0), list[int](), 0.0, 0.0
    while len(tokens) < TOKENS and spent < WRITE_S:
        begun = time.process_time()
        mask = matcher.mask()
        took = time.process_time() - begun
        slowest, spent = max(slowest, took), spent + took
        if matcher.failed == BROKEN or (matcher.failed and not tokens):
            return f"{wanted.said} cannot be written: {matcher.failed}"
        if not any(mask):
            break
        tokens.append(_drawn(mask, chance))
        matcher.follow(tokens)
    if slowest > STEP_S:
        return f"{wanted.said} takes more than {STEP_S} s for each token; send a smaller one"
    if spent >= WRITE_S:
        return f"{wanted.said} takes longer the longer the answer is; send one that is less ambiguous"
    grown = _resident_bytes() - before
    return f"{wanted.said} {TOO_DEAR}" if grown > GROWTH_BYTES else ""


def _drawn(mask: bytes, chance: random.Random) -> int:
    """One of the ids in a mask that has some."""
    start = chance.randrange(len(mask))
    found = _SOME.search(mask, start) or _SOME.search(mask)
    assert found is not None
    at, byte = found.start(), found[0][0]
    return 8 * at + chance.choice([bit for bit in range(8) if byte >> bit & 1])


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
