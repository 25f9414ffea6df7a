"""`shardwise generate --input FILE --output FILE`: many requests, a line of output each as it ends; to be resumed any time."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from queue import SimpleQueue

from shardwise.cli import flags
from shardwise.cli.lines import Asked, Defaults, Line, ask, identity, open_lines, read_lines
from shardwise.cli.results import Results, Sink, open_results, standard_output
from shardwise.cli.show import show_cut, shown_logprobs
from shardwise.cli.start import start
from shardwise.engine.front import Front, Running, sampling_defaults
from shardwise.engine.outputs import CompletionOutput, RequestOutput
from shardwise.engine.progress import progress
from shardwise.engine.setup import resolve
from shardwise.engine.text import open_tokenizer
from shardwise.errors import RequestError, ShardwiseError
from shardwise.sched.checks import in_json
from shardwise.sched.events import Event

WINDOW = 1024
"""So many requests wait for the engine or run in it: enough for it to choose from, however long the file."""


def run(args: argparse.Namespace) -> None:
    """The command, once its flags are parsed."""
    options = flags.options(args)
    _check(args)
    setup = resolve(options)
    sampling = {**sampling_defaults(setup.folder), **flags.sampling_fields(args)}
    defaults = Defaults(setup.name, sampling, args.chat, args.system)
    tokenizer = open_tokenizer(setup.folder)
    if args.input == "-":
        source, total, results = sys.stdin.buffer, None, Results()
    else:
        with open_lines(args.input) as file:
            results = open_results(args.output, file, args.input, defaults, resume=args.resume)
        source = open_lines(args.input)
        total = results.lines
    if args.show_cut:
        show_cut(setup)
    with source, start(setup) as engine, standard_output() if args.output == "-" else results.writing(args.output) as sink:
        todo = (line for line in read_lines(source, defaults) if line.number not in results.done)
        with progress(total) as bar:
            batch = Batch(Front(engine, tokenizer), defaults, sink, results.names)
            for tokens, done in batch.run(todo):
                bar.add(tokens, done=done)
    failed, lost = results.failed + batch.failed, batch.lost
    sys.stderr.write(f"{len(results.done) + batch.written} answered, {failed} of them with an error\n")
    if lost:
        again = "" if args.output == "-" else "; --resume asks again"
        raise ShardwiseError(f"{len(lost)} requests failed, the first at line {lost[0][0]}: {lost[0][1]}{again}")
    if failed:
        raise ShardwiseError(f"{failed} lines could not be run; their output says why")


def _check(args: argparse.Namespace) -> None:
    """What can be refused before the model is looked up."""
    flags.sampling(args, {})
    for flag, given in (("--prompt", args.prompt), ("--prompt-file", args.prompt_file)):
        if given is not None:
            raise RequestError(f"{flag} and --input are both given; put all requests into the file")
    if args.json:
        raise RequestError("--json is for one prompt; with --input, the output is JSON anyway")
    if args.system is not None and not args.chat:
        raise RequestError("--system is a part of a conversation; add --chat")
    if args.output is None:
        raise RequestError("--input needs --output FILE, a new one; --output - writes to standard output")
    if args.resume and "-" in (args.input, args.output):
        raise RequestError("--resume needs an input and an output that are files")
    if args.input == "-" and args.output != "-" and args.output is not None:
        open_results(args.output, None, args.input, Defaults("", {}), resume=False)


class Batch:
    """Lines on their way through an engine. `written` lines have an output, `failed` of them an error as such.

    `lost`: (line, why) of those that failed for no fault of theirs, and have none.
    """

    def __init__(self, front: Front, defaults: Defaults, sink: Sink, names: Mapping[str | int, int] | None = None) -> None:
        """`names`: ids that lines have taken before."""
        self._front, self._defaults, self._sink = front, defaults, sink
        self._events: SimpleQueue[tuple[int, Event]] = SimpleQueue()
        self._open: dict[int, tuple[Line, Asked, Running]] = {}
        self._names = dict(names or {})
        self.written = self.failed = 0
        self.lost: list[tuple[int, str]] = []

    def run(self, lines: Iterator[Line]) -> Iterator[tuple[int, bool]]:
        """Answers all of them; (new tokens, whether a line ended), to show. ShardwiseError where the engine breaks."""
        more = True
        try:
            while more or self._open:
                while more and len(self._open) < WINDOW:
                    line = next(lines, None)
                    if line is None:
                        more = False
                    elif not self._begun(line):
                        yield 0, True
                if self._open:
                    yield self._step(*self._events.get())
        finally:
            for _, _, running in self._open.values():
                running.abort()

    def _begun(self, line: Line) -> bool:
        """Starts the request of a line; or writes why it cannot be, and returns False."""
        name = identity(line)
        try:
            if (first := self._names.get(name, line.number)) != line.number:
                raise RequestError(f"id {name!r} is that of line {first} too; give each line its own")
            asked = ask(line, self._front, self._defaults, secrets.randbelow(flags.SEEDS))
            running = self._front.start(asked.prompt, asked.params, partial(self._put, line.number))
        except RequestError as error:
            self._write(line, name, {"error": in_json(str(error))})
            self.failed += 1
            return False
        # Only now: a line that cannot be run, and goes by its number, takes no other line's id.
        self._names[name] = line.number
        self._open[line.number] = line, asked, running
        return True

    def _put(self, number: int, event: Event) -> None:
        """On the engine's thread."""
        self._events.put((number, event))

    def _step(self, number: int, event: Event) -> tuple[int, bool]:
        line, asked, running = self._open[number]
        before = running.transcript.tokens
        running.feed(event)
        if not running.ended:
            return running.transcript.tokens - before, False
        del self._open[number]
        if (ended := running.transcript.ended) is not None and ended.error is not None:
            self.lost.append((number, ended.error))
        else:
            self._write(line, asked.id, answer(asked, running.transcript.output()))
        return running.transcript.tokens - before, True

    def _write(self, line: Line, name: str | int, what: dict[str, object]) -> None:
        # ASCII: one line for every reader, whatever it takes for a line end, in every encoding.
        self._sink(json.dumps({"id": name, "line": line.number, "input": line.digest, **what}).encode() + b"\n")
        self.written += 1


def answer(asked: Asked, output: RequestOutput) -> dict[str, object]:
    """What is told of a request that ran to its end."""
    params = asked.params
    scores: object = None
    if params.prompt_logprobs is not None and output.prompt_logprobs is not None:
        top = params.prompt_logprobs
        scores = [None if place is None else shown_logprobs(place, top) for place in output.prompt_logprobs]
    return {
        "error": None,
        "outputs": [_choice(choice, params.logprobs) for choice in output.outputs],
        "prompt_tokens": len(output.prompt_token_ids),
        "completion_tokens": sum(len(choice.token_ids) for choice in output.outputs),
        "cached_tokens": output.num_cached_tokens,
        "seed": params.seed,
        **({} if scores is None else {"prompt_logprobs": scores}),
    }


def _choice(choice: CompletionOutput, top: int | None) -> dict[str, object]:
    shown: dict[str, object] = {
        "index": choice.index,
        "text": choice.text,
        "token_ids": choice.token_ids,
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.stop_reason,
    }
    if top is not None and choice.logprobs is not None:
        shown["logprobs"] = [shown_logprobs(place, top) for place in choice.logprobs]
    return shown
