"""What the runs are compared on: a few texts that are built in, or a file of the user's, as token ids that fit the context."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shardwise.engine.text import Tokenizer
from shardwise.errors import RequestError
from shardwise.sched.checks import in_vocabulary
from shardwise.verify.trace import Text

BUILT_IN = {
    "story": "Once upon a time, there was a small lighthouse keeper who counted the ships that passed at night.",
    "question": "Question: Why does the moon look larger near the horizon?\nAnswer:",
    "code": "def median(values: list[float]) -> float:\n    ordered = sorted(values)\n    middle = len(ordered) // 2\n",
    "digits": "3.14159265358979, 2.71828182845905, 1.41421356237310, 1024 + 2048 = ",
    "languages": (
        "Der Zug hält heute nicht in jedem Dorf. Le marché ouvre à sept heures. El río baja crecido. "
        "Поезд опоздал на час. 今日は雨が降っています。 火车晚点了。 الكتاب على الطاولة. 비가 그쳤다."
    ),
    "long": (
        "A wheel that is cut into three pieces still turns, if the pieces are held together at the rim. The smith who made "
        "the first one wrote down how it was done, so that others would not have to find it out again. First, he said, "
        "measure the whole, and keep the measure; a part that is measured alone will not fit its neighbours. Second, cut "
        "along the grain, because wood that is cut across it splits later, and nobody remembers why. Third, let each piece "
        "carry what it is able to carry, and no more: the strong oak the heavy load, the light ash the rest. Fourth, join "
        "them twice in every turn, once where they take up the road and once where they give it back, and nowhere else, "
        "since every joint costs a little of the way. Fifth, roll it down the hill beside a wheel of one piece, and watch "
        "both to the very end. If one of them comes to rest a hand's breadth from the other, it was the stones on the hill. "
        "If it comes to rest in another field, do not blame the stones: look at the cut. People who came after him built "
        "wheels of two pieces and of seven, of pieces that were alike and of pieces that were not, and carts on them, and "
        "all of them rolled to the same place, which is what a wheel is for. "
    ),
}
"""Plain text in several languages, code and digits, and one that is longer than a step and many pages of the cache."""

LIMIT_BYTES = 16 * 2**20
LIMIT_TEXTS = 4096

RANDOM = ((9, 5), (40, 17), (230, 23))
"""(tokens, seed) of texts for a model that has no tokenizer."""


def built_in(tokenizer: Tokenizer) -> list[Text]:
    """The texts that come with this."""
    return [Text(name, tuple(tokenizer.encode(text)), text) for name, text in BUILT_IN.items()]


def random_ids(vocabulary: int) -> list[Text]:
    """Token ids at random, always the same ones."""
    found = []
    for count, seed in RANDOM:
        chance = random.Random(seed)
        found.append(Text(f"{count} random ids", tuple(chance.randrange(vocabulary) for _ in range(count))))
    return found


def read_texts(path: str, tokenizer: Tokenizer | None) -> list[Text]:
    """A text for each line that is not blank: as it is, or of a .jsonl file the "prompt" or "prompt_token_ids" of an object.

    Lines are numbered from 1 in the texts' names. RequestError for a file or a line that cannot be used.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(LIMIT_BYTES + 1)
    except OSError as error:
        raise RequestError(f"--prompts {path}: {error.strerror}; give a text file with a prompt a line") from None
    if len(data) > LIMIT_BYTES:
        raise RequestError(f"--prompts {path} is longer than {LIMIT_BYTES >> 20} MiB; give fewer prompts")
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"--prompts {path} is not UTF-8: byte {error.start} is 0x{data[error.start]:02X}; save it as UTF-8"
        ) from None
    found = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            given: Any = _object(line, f"{path}:{number}") if path.endswith(".jsonl") else line.removesuffix("\r")
            found.append(_text(given, f"line {number}", f"{path}:{number}", tokenizer))
    if not found:
        raise RequestError(f"--prompts {path} is empty; give a prompt a line")
    if len(found) > LIMIT_TEXTS:
        raise RequestError(f"--prompts {path} has {len(found)} prompts; {LIMIT_TEXTS} are the most")
    return found


def _object(line: str, where: str) -> str | list[int]:
    """The prompt of one line of JSON, as text or as ids."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise RequestError(f'{where} is not JSON; give {{"prompt": "text"}} a line') from None
    if isinstance(value, dict):
        given = value.get("prompt_token_ids", value.get("prompt"))
        if isinstance(given, str) or (isinstance(given, list) and all(type(token) is int for token in given)):
            return given
    raise RequestError(f'{where} has no "prompt" that is text, and no "prompt_token_ids" that are whole numbers')


def _text(given: str | list[int], name: str, where: str, tokenizer: Tokenizer | None) -> Text:
    if isinstance(given, str) and tokenizer is None:
        raise RequestError(f'{where} is text, and the model has no tokenizer; give "prompt_token_ids" in a .jsonl file')
    try:
        ids = tokenizer.encode(given) if isinstance(given, str) and tokenizer is not None else given
    except RequestError as error:
        raise RequestError(f"{where}: {error}") from None
    if not ids:
        raise RequestError(f"{where} is empty: a prompt needs at least one token")
    return Text(name, tuple(int(token) for token in ids), given if isinstance(given, str) else None)


def fitted(texts: Sequence[Text], context: int, limit: int, vocabulary: int) -> list[Text]:
    """The texts clipped so that `limit` more tokens fit the context. RequestError where none would be left, or for an id
    outside of the vocabulary."""
    room = context - limit
    if room < 1:
        raise RequestError(f"--max-tokens {limit} leaves no room for a prompt in the context of {context}; use fewer")
    for text in texts:
        in_vocabulary(text.name, text.ids, vocabulary)
    return [text if len(text.ids) <= room else Text(text.name, text.ids[:room]) for text in texts]
