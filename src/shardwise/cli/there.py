"""`shardwise chat --url`: the same dialogue with a model on a server of OpenAI's API, whichever it is."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import closing
from typing import Any

from shardwise.cli import flags
from shardwise.cli.dialogue import Dialogue, say
from shardwise.cli.remote import Server, server
from shardwise.cli.show import rates, write
from shardwise.errors import RequestError, ShardwiseError, TooLong, UserError

MINE = ("model", "url", "api_key", "system", "stats", *flags.SAMPLING, "stop", "ignore_eos")
"""The flags that say something of a model that runs elsewhere; all others are its server's to say."""


def run(parser: flags.Parser, args: argparse.Namespace) -> int:
    """The dialogue that the flags ask for, and its exit code."""
    for action in parser.actions:
        if action.dest not in MINE and getattr(args, action.dest, action.default) != action.default:
            flag = max(action.option_strings, key=len)
            raise UserError(f"{flag} is for a model that runs here; of one at --url, the server decides it: leave it out")
    flags.sampling(args, {})
    asked = server(args.url, args.api_key)
    model = args.model or asked.model()
    if sys.stdin.isatty():
        say(f"{model} at {asked.url}. /help lists commands, Ctrl-D ends.")
    return Dialogue(There(asked, model, args)).run()


class There:
    """A model on a server. It is told all that was said each time."""

    def __init__(self, asked: Server, model: str, args: argparse.Namespace) -> None:
        self._server, self._model, self._stats = asked, model, args.stats
        self._fields = flags.sampling_fields(args)
        self._turns: list[dict[str, Any]] = []
        self.system: str | None = args.system

    def reset(self) -> None:
        self._turns.clear()

    def answer(self, question: str) -> None:
        try:
            self._fitting(question)
        except RequestError:
            raise
        except (UserError, ShardwiseError) as error:
            # What one question meets need not end the dialogue.
            raise RequestError(str(error)) from None

    def _fitting(self, question: str) -> None:
        """Where the context is full, the oldest turns make way, as in a dialogue with a model that runs here."""
        for first in range(0, len(self._turns) + 1, 2):
            try:
                self._answer(question, self._turns[first:])
            except TooLong:
                if first == len(self._turns):
                    write("\n")
                    raise
                continue
            if first:
                count = first // 2
                say(f"[the context is full: the oldest {'turn was' if count == 1 else f'{count} turns were'} dropped]")
            return

    def _answer(self, question: str, turns: list[dict[str, Any]]) -> None:
        asked = {"role": "user", "content": question}
        first = [{"role": "system", "content": self.system}] if self.system else []
        body = {"model": self._model, "messages": [*first, *turns, asked], **self._fields}
        if self._stats:
            body["stream_options"] = {"include_usage": True}
        begun, times, parts, finish, tokens = time.perf_counter(), [], [], None, 0
        stream, too_long = self._server.stream("chat/completions", body), False
        try:
            with closing(stream):
                for chunk in stream:
                    tokens = (chunk.get("usage") or {}).get("completion_tokens") or tokens
                    for choice in chunk.get("choices") or ():
                        said = choice.get("delta") or choice.get("message") or {}
                        finish = choice.get("finish_reason") or finish
                        if text := said.get("content"):
                            times.append(time.perf_counter() - begun)
                            parts.append(text)
                            write(text)
        except KeyboardInterrupt:
            finish = "stopped"
        except TooLong:
            too_long = True
            raise
        finally:
            if not too_long:
                write("\n")
        if finish in ("stopped", "length"):
            say("[stopped]" if finish == "stopped" else "[cut at --max-tokens, or at the end of the context]")
        if self._stats and times:
            say(", ".join(rates(tokens or len(times), times[0], times[-1])))
        if parts:
            self._turns = [*turns, asked, {"role": "assistant", "content": "".join(parts)}]
