"""`shardwise chat`: talk with a model. On a terminal a small dialogue; from a pipe, one message a line and one answer each."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

from shardwise.cli import flags
from shardwise.cli.conversation import Conversation
from shardwise.cli.dialogue import COMMANDS, Dialogue, say
from shardwise.cli.remote import add_url
from shardwise.cli.show import rates, show_cut, write
from shardwise.cli.start import followed, start
from shardwise.engine.complete import Prompt
from shardwise.engine.front import Front, sampling_defaults
from shardwise.engine.outputs import CompletionOutput
from shardwise.engine.setup import Setup, resolve
from shardwise.engine.text import open_tokenizer
from shardwise.sched.request import SamplingParams


def run(argv: Sequence[str]) -> int:
    """The command and its exit code; `argv` is what follows its name."""
    parser = _parser()
    args = parser.read(argv)
    if args.url is not None:
        from shardwise.cli import there

        return there.run(parser, args)
    if followed():
        return 0
    options = flags.options(args)
    flags.sampling(args, {})
    setup = resolve(options)
    params = flags.sampling(args, sampling_defaults(setup.folder))
    tokenizer = open_tokenizer(setup.folder)
    conversation = Conversation(setup, tokenizer, args.system)
    params = replace(params, stop=(*params.stop, *conversation.stops))
    if args.show_cut:
        show_cut(setup)
    with start(setup) as engine:
        if sys.stdin.isatty():
            say(f"{setup.name} on {setup.layout.mesh.tp} rank(s), context {setup.context}. /help lists commands, Ctrl-D ends.")
        code = Dialogue(Here(Front(engine, tokenizer), conversation, params, args.stats)).run()
    if args.seed is None and params.temperature > 0:
        say(f"seed {params.seed}")
    return code


def _parser() -> flags.Parser:
    lines = "\n".join(f"  {name:9}{text}" for name, text in COMMANDS.items())
    parser = flags.Parser("chat", f"Talks with a model, here or on a server.\n\nwithin the dialogue:\n{lines}")
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    parser.add_argument("--show-cut", action="store_true", help="first draw how the model is cut, on standard error")
    add_url(parser, None)
    flags.add_model(parser)
    flags.add_running(parser)
    flags.add_sampling(parser, "what the context leaves")
    return parser


class Here:
    """A model that runs on this machine."""

    def __init__(self, front: Front, conversation: Conversation, params: SamplingParams, stats: bool) -> None:
        self._front = front
        self._setup: Setup = front.core.setup
        self._conversation = conversation
        self._params = params
        self._stats = stats

    @property
    def system(self) -> str | None:
        return self._conversation.system

    @system.setter
    def system(self, text: str | None) -> None:
        self._conversation.system = text

    def reset(self) -> None:
        self._conversation.reset()

    def answer(self, question: str) -> None:
        ids, dropped = self._conversation.prompt(question)
        if dropped:
            say(f"[the context of {self._setup.context} tokens is full: the oldest {_turns(dropped)} dropped]")
        room = self._setup.context - len(ids)
        limit = min(self._params.max_tokens or room, room)
        params = replace(self._params, max_tokens=limit, min_tokens=min(self._params.min_tokens, limit))
        begun, answer, times = time.perf_counter(), "", []
        new: CompletionOutput | None = None
        stream = self._front.stream(Prompt(question, tuple(ids)), params)
        with interruption() as stopped, contextlib.closing(stream):
            for output in stream:
                [new] = output.outputs
                times += [time.perf_counter() - begun] * len(new.token_ids)
                answer += new.text
                write(new.text)
                if stopped.is_set():
                    break
        write("\n")
        if new is not None and new.finish_reason is None:
            say("[stopped]")
        elif new is not None and new.finish_reason == "length":
            say(f"[cut at {'--max-tokens' if limit < room else 'the end of the context'}]")
        if self._stats and times:
            say(", ".join(rates(len(times), times[0], times[-1])))
        if answer:
            self._conversation.answered(question, answer)


def _turns(count: int) -> str:
    return "turn was" if count == 1 else f"{count} turns were"


@contextmanager
def interruption() -> Iterator[threading.Event]:
    """Ctrl-C sets the event, so that a step in flight ends in order; a second one goes its usual way."""
    stopped = threading.Event()

    def note(_signal: int, _frame: FrameType | None) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
