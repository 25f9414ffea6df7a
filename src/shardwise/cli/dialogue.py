"""A conversation in the terminal, whoever answers: reads messages and commands, says what is not the model's."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator
from typing import Protocol

from shardwise.cli.prompt import decoded
from shardwise.cli.show import write
from shardwise.errors import RequestError

COMMANDS = {
    "/reset": "forget what was said",
    "/system": "TEXT: set the system message; without TEXT, remove it",
    "/exit": "end (so does Ctrl-D)",
    "/help": "this list",
}


class Partner(Protocol):
    """Whoever answers in a dialogue, and remembers what was said."""

    system: str | None

    def answer(self, question: str) -> None:
        """Writes the answer as it comes. RequestError where there is none, and the dialogue goes on."""
        ...

    def reset(self) -> None:
        """Forgets what was said."""
        ...


class Dialogue:
    """Reads messages, has them answered, until the input ends."""

    def __init__(self, partner: Partner) -> None:
        self._partner = partner

    def run(self) -> int:
        """The exit code: 1 where a message through a pipe got no whole answer. On a terminal whoever asked has read why."""
        typing, code = sys.stdin.isatty(), 0
        for message in typed() if typing else piped():
            if not message.strip():
                continue
            name, _, rest = message.strip().partition(" ")
            if name in ("/exit", "/quit", "/bye"):
                break
            if re.fullmatch(r"/[a-z]+", name):
                self._command(name, rest.strip())
                continue
            try:
                self._partner.answer(message)
            except RequestError as error:
                say(f"error: {error}")
                code = 0 if typing else 1
        return code

    def _command(self, name: str, rest: str) -> None:
        if name == "/reset":
            self._partner.reset()
            say("forgotten")
        elif name == "/system":
            self._partner.system = rest or None
            say("system message set" if rest else "system message removed")
        elif name == "/help":
            say("\n".join(f"{command:9}{text}" for command, text in COMMANDS.items()))
        else:
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            say(f"there is no command {name}; {f'did you mean {near[0]}?' if near else '/help lists them'}")


def say(text: str) -> None:
    """Something that is not the model's, on standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def typed() -> Iterator[str]:
    """Lines from the terminal, with editing. Ctrl-C clears the line, Ctrl-D ends."""
    import readline  # noqa: F401 - input() uses it where it is loaded

    while True:
        try:
            yield input("> ")
        except EOFError:
            write("\n")
            return
        except KeyboardInterrupt:
            say("\n(Ctrl-D or /exit ends)")


def piped() -> Iterator[str]:
    """Lines of standard input."""
    for number, line in enumerate(sys.stdin.buffer, start=1):
        yield decoded(line, f"standard input, line {number}").rstrip("\r\n")
