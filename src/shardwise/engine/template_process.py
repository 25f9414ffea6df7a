"""Where chat templates run: jinja2's immutable sandbox, in a process of its own with limits that the kernel keeps.

No check from inside can bound `'a' * 10**9`, a sort or a huge power; a CPU timer and a kill bound all. It knows no messages.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import resource
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from datetime import datetime
from subprocess import DEVNULL, PIPE, Popen
from typing import Any, NoReturn

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from shardwise import children

COMPILE_S = 2.0  # of CPU time, once
CPU_S = 0.25  # for one rendering
WALL_S = 10.0  # for one rendering on a machine so busy that its CPU time does not come
MEMORY_BYTES = 512 << 20  # of address space, 60 MiB of it the interpreter
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from shardwise.bound import bound; bound(int(sys.argv[-1])); "
    "from shardwise.engine.template_process import serve; serve()"
)


class _Generation(Extension):
    """`{% generation %}` marks what the model wrote, for training; in a prompt it only groups."""

    tags = {"generation"}  # noqa: RUF012 - the type that jinja2 declares

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Namespace(Namespace):
    """As jinja2's, but no name may begin with an underscore (as in transformers)."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that `namespace(self=...)` works, as in jinja2
        for name in dict(*args[1:], **kwargs):
            _check_public(name)
        Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        super().__setitem__(name, value)


def _check_public(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}: names that begin with an underscore are private")


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment() -> ImmutableSandboxedEnvironment:
    """The names, filters and settings that transformers gives to chat templates (utils/chat_template_utils.py, 5.x)."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    # Both keep constants from being worked out while compiling, so that a bomb in one goes off where it is bounded.
    environment.optimized, environment.finalize = False, jinja2.pass_context(lambda _context, value: value)
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": lambda format: datetime.now().strftime(format),
        "dict": lambda *args, **kwargs: dict(*args, **kwargs),
        "namespace": _Namespace,
    }
    return environment


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template:
    return environment().from_string(source)


def rendered(source: str, variables: Mapping[str, Any], limit: int) -> tuple[str, str]:
    """What came of a rendering: `text`, or why there is none: `syntax`, `raised`, `failed`, and a message."""
    parts, size = [], 0
    try:
        for part in _compiled(source).generate(**variables):
            parts.append(part)
            size += len(part)
            if size > limit:
                return "failed", f"it makes more than {limit} characters of this input"
        return "text", "".join(parts)
    except jinja2.TemplateSyntaxError as error:
        return "syntax", f"line {error.lineno}: {error.message}"[:1000]
    except jinja2.TemplateError as error:
        return "raised" if type(error) is jinja2.TemplateError else "failed", str(error)[:1000]
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"[:1000]


def serve() -> None:
    """The rendering process: a JSON line in, a JSON line out, until the input ends. Over its CPU time, it is killed."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    for line in sys.stdin.buffer:
        source, variables, limit = json.loads(line)
        # SIGPROF is left to its default, the end of the process: it stops even one long operation in C.
        signal.setitimer(signal.ITIMER_PROF, COMPILE_S)
        with contextlib.suppress(Exception):  # which comes again below
            _compiled(source)
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        answer = json.dumps(rendered(source, variables, limit))
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(answer.encode() + b"\n")
        sys.stdout.buffer.flush()


class Isolated:
    """Renders in a process that is started at the first call, kept, and started anew after one that had to be killed."""

    def __init__(self) -> None:
        self._process: Popen[bytes] | None = None
        self._lock = threading.Lock()

    def started(self) -> Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "PATH", "TZ") if name in os.environ}  # no keys
            command = [sys.executable, "-I", "-c", _START, json.dumps([path for path in sys.path if path])]
            command.append(str(os.getpid()))
            self._process = children.started(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, cwd="/", env=kept)
            weakref.finalize(self, _end, self._process)
        return self._process

    def __call__(self, source: str, variables: Mapping[str, Any], limit: int) -> tuple[str, str]:
        with self._lock:
            process = self.started()
            assert process.stdin and process.stdout
            watch = threading.Timer(WALL_S, process.kill)
            watch.start()
            try:
                process.stdin.write(json.dumps([source, dict(variables), limit]).encode() + b"\n")
                process.stdin.flush()
                answer = process.stdout.readline()
            except OSError:
                answer = b""
            finally:
                watch.cancel()
            if answer.endswith(b"\n"):
                return tuple(json.loads(answer))
            _end(process)
            late = process.returncode == -signal.SIGPROF
            return "failed", f"it takes more than {CPU_S} s" if late else f"its process ended with code {process.returncode}"


def _end(process: Popen[bytes]) -> None:
    with contextlib.suppress(OSError), process:  # which closes the pipes, one of them perhaps with a request in it, and waits
        process.kill()
