"""Options from three places: flags go before the environment (SHARDWISE_<NAME>), and that before a TOML file (--config).

A parser's flags are the table: each long name is a key of the file, with - or _, and a variable. Knows no option by name.
"""

from __future__ import annotations

import argparse
import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shardwise import env
from shardwise.cli.flags import Parser
from shardwise.errors import UserError

LIMIT_BYTES = 2**20
"""The longest file of options that is read."""

FILE = "config"
"""The flag that names the file; it is a flag or a variable, but no key of the file."""

Given = list[tuple[str, str, object]]
"""(what the user would call it, name of the option, value) of one place."""


def read(parser: Parser, argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> argparse.Namespace:
    """All options of `parser`: as given in the first place that has them, else their defaults. UserError for what cannot be
    understood, with its place."""
    actions = options(parser)
    defaults = {action.dest: action.default for action in actions}
    for action in actions:
        action.default = argparse.SUPPRESS
    found = vars(parser.read(argv))
    for action in actions:
        action.default = defaults[action.dest]
    names = {name: action for action in actions for name in keys(action)}
    found = {**_values(_from_environment(names, environ), names), **found}
    if (path := found.get(FILE)) is not None:
        found = {**_values(_from_file(Path(path), names), names), **found}
    return argparse.Namespace(**{**defaults, **found})


def options(parser: Parser) -> list[argparse.Action]:
    """The actions that take or set a value, in the order of the help."""
    return [action for action in parser.actions if action.dest != "help"]


def keys(action: argparse.Action) -> tuple[str, ...]:
    """The names of an option in a file, the usual one first: its long flags, and what it is called itself."""
    long = [flag[2:].replace("-", "_") for flag in action.option_strings if flag.startswith("--")]
    return tuple(name for name in long if not name.startswith("no_") or name[3:] not in long) or (action.dest,)


def variable(name: str) -> str:
    """The environment variable of an option, by its name in a file."""
    return env.PREFIX + name.upper()


def misspelt(parser: Parser, environ: Mapping[str, str] = os.environ) -> Iterator[str]:
    """A line for each variable that looks like one of an option and is none: unlike flags, it cannot be refused, since others
    may read it."""
    names = [name for action in options(parser) for name in keys(action)]
    for variable_ in sorted(environ):
        name = variable_.removeprefix(env.PREFIX).lower()
        if variable_.startswith(env.PREFIX) and name not in names and variable_ != env.DEBUG:
            for near in difflib.get_close_matches(name, names, n=1, cutoff=0.75):
                yield f"{variable_} is no option and changes nothing; did you mean {variable(near)}?"


def _from_environment(names: Mapping[str, argparse.Action], environ: Mapping[str, str]) -> Given:
    return [(variable(name), name, text) for name in names if (text := environ.get(variable(name), "").strip())]


def _from_file(path: Path, names: Mapping[str, argparse.Action]) -> Given:
    try:
        with path.open("rb") as file:
            data = file.read(LIMIT_BYTES + 1)
        if len(data) > LIMIT_BYTES:
            raise UserError(f"--config {path} is longer than {LIMIT_BYTES >> 20} MiB; that is no file of options")
        table = tomllib.loads(data.decode())
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}; give a TOML file such as `port = 8001`") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} is not TOML: {error}") from None
    given: Given = []
    for key, value in table.items():
        name = key.replace("-", "_")
        if isinstance(value, dict):
            raise UserError(f"--config {path}: [{key}] is a table; keys stand at the top of the file, without one")
        if name not in names or name == FILE:
            near = difflib.get_close_matches(name, [known for known in names if known != FILE], n=1)
            raise UserError(
                f"--config {path}: unknown key {key!r}{f', nearest: {near[0]}' if near else ''}; keys are named as the flags"
            )
        given.append((f"--config {path}: {key}", name, value))
    return given


def _values(given: Given, names: Mapping[str, argparse.Action]) -> dict[str, Any]:
    """By `dest`, as the parser would have stored them."""
    found: dict[str, Any] = {}
    places: dict[str, str] = {}
    for place, name, value in given:
        action = names[name]
        if action.dest in found:
            raise UserError(f"{places[action.dest]} and {place} are one option; leave one of them out")
        places[action.dest] = place
        found[action.dest] = _value(action, value, place)
    return found


def _value(action: argparse.Action, given: object, place: str) -> object:
    if action.nargs == 0:
        return _switch(given, place)
    many = isinstance(action, argparse._AppendAction)  # which `extend` is too
    texts = [_text(each, place) for each in (given if isinstance(given, list) and many else [given])]
    found: list[object] = []
    for text in texts:
        try:
            value = action.type(text) if callable(action.type) else text
        except (argparse.ArgumentTypeError, ValueError) as error:
            reason = str(error) if isinstance(error, argparse.ArgumentTypeError) else f"{text!r} cannot be read"
            raise UserError(f"{place}: {reason}") from None
        if action.choices is not None and value not in action.choices:
            raise UserError(f"{place}: {text!r} is not known; choose one of {', '.join(map(str, action.choices))}")
        found += value if many and isinstance(value, tuple) else [value]
    return found if many else found[0]


def _text(value: object, place: str) -> str:
    """A plain value as it would stand on the command line; a list of them with commas."""
    if isinstance(value, list):
        return ",".join(_text(each, place) for each in value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{place}: {value!r} is a {type(value).__name__}; it takes a string, a number, or a list of these")
    return str(value)


def _switch(given: object, place: str) -> bool:
    if isinstance(given, bool):
        return given
    word = str(given).lower()
    if word not in SWITCHES:
        raise UserError(f"{place}: {given!r} is neither on nor off; it takes one of {', '.join(SWITCHES)}")
    return SWITCHES[word]


SWITCHES = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False, "on": True, "off": False}


def markdown(parser: Parser) -> Iterator[str]:
    """The lines of a table of all options: flags, key of the file, variable, what it is."""
    yield "| flag | key in the file | variable | what it is |"
    yield "|---|---|---|---|"
    for action in options(parser):
        name = keys(action)[0]
        flags = ", ".join(f"`{flag}`" for flag in action.option_strings) or f"`{action.metavar or action.dest}`"
        value = "" if action.nargs == 0 or not action.option_strings else f" {action.metavar or action.dest.upper()}"
        key = "" if name == FILE else f"`{name}`"
        text = (action.help or "").replace("|", "\\|").replace("%%", "%")
        yield f"| {flags}{value} | {key} | `{variable(name)}` | {text} |"
