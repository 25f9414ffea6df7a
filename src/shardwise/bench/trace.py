"""When requests came to a real service, and how long they were: Azure's traces (CSV) and Mooncake's (JSON lines), scaled.

Sources: the Azure LLM inference trace of 2023 (Splitwise), the Mooncake trace of 2024. Neither has texts; prompts are made up.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from shardwise.errors import UserError

BLOCK = 512
"""Tokens that one of Mooncake's hashes stands for: prompts with the same hashes begin alike."""

AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MOONCAKE = ("timestamp", "input_length", "output_length")


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request `at_s` seconds after the first one, with a prompt of `prompt` tokens and an answer of `answer`.

    `blocks`: numbers of the prompt's pieces of `block` tokens; equal numbers are equal tokens.
    """

    at_s: float
    prompt: int
    answer: int
    blocks: tuple[int, ...] = ()
    block: int = BLOCK


@dataclass(frozen=True, slots=True)
class Scale:
    """The first `requests` of a trace, `speed` times as fast, `length` times as long, none longer than `context` tokens."""

    requests: int
    speed: float
    length: float
    context: int


def read(path: Path, most: int) -> list[Arrival]:
    """The first `most` requests of a trace. UserError where it is none."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = _azure(csv.DictReader(file)) if path.suffix == ".csv" else _mooncake(file)
            found = list(islice(rows, most))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--trace {path}: {getattr(error, 'strerror', None) or error}; give a file that can be read") from None
    except (KeyError, TypeError, ValueError):
        kinds = f"a .csv with {', '.join(AZURE)} or JSON lines with {', '.join(MOONCAKE)}"
        raise UserError(f"--trace {path} is no trace: it takes {kinds}") from None
    if not found:
        raise UserError(f"--trace {path} has no requests; give another one")
    begun = found[0].at_s
    return [Arrival(each.at_s - begun, each.prompt, each.answer, each.blocks) for each in found]


def scaled(arrivals: Sequence[Arrival], scale: Scale) -> tuple[list[Arrival], int]:
    """The same, scaled; and how many of them were cut to the context."""
    found, cut = [], 0
    for each in arrivals[: scale.requests]:
        answer = max(1, round(each.answer * scale.length))
        prompt = max(1, round(each.prompt * scale.length))
        if prompt + answer > scale.context:
            cut += 1
            answer = min(answer, max(1, scale.context // 2))
            prompt = min(prompt, scale.context - answer)
        block = max(1, round(BLOCK * scale.length))
        found.append(Arrival(each.at_s / scale.speed, prompt, answer, each.blocks, block))
    return found, cut


def tokens(arrival: Arrival, number: int, vocabulary: int) -> list[int]:
    """The made-up prompt of request `number`: pieces with the same hash are alike, all else differs."""
    made: list[int] = []
    for block in arrival.blocks:
        made += _piece(block, arrival.block, vocabulary)
    made = made[: arrival.prompt]
    # Below zero, where no hash is.
    return made + _piece(-1 - number, arrival.prompt - len(made), vocabulary)


def _piece(seed: int, count: int, vocabulary: int) -> list[int]:
    start = seed * 2_654_435_761 % 2**32
    return [(start + place * 40_503) % 2**32 % vocabulary for place in range(count)]


def _azure(rows: Iterator[Mapping[str, str]] | csv.DictReader[str]) -> Iterator[Arrival]:
    for row in rows:
        stamp, prompt, answer = (row[name] for name in AZURE)
        # Seven digits of a second: more than datetime reads.
        yield Arrival(datetime.fromisoformat(stamp[:26]).timestamp(), int(prompt), int(answer))


def _mooncake(lines: Iterator[str]) -> Iterator[Arrival]:
    for line in lines:
        row: dict[str, Any] = json.loads(line)
        stamp, prompt, answer = (row[name] for name in MOONCAKE)
        yield Arrival(float(stamp) / 1000, int(prompt), int(answer), tuple(int(each) for each in row.get("hash_ids", ())))
