"""How the entries of a vocabulary become bytes of text: read from the decoder of a tokenizer.json. Knows no tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shardwise.errors import CheckpointError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_characters() -> dict[str, int]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2, `bytes_to_unicode`)."""
    moved = [*range(0x21), *range(0x7F, 0xA1), 0xAD]
    return {chr(256 + moved.index(byte) if byte in moved else byte): byte for byte in range(256)}


_BYTE_OF = _byte_characters()


@dataclass(frozen=True, slots=True)
class Spelling:
    """How a vocabulary's entries become bytes of text, read from the tokenizer's decoder."""

    replace: tuple[tuple[str, str], ...] = ()  # (old, new) in every entry
    byte_level: bool = False  # an entry's characters stand for bytes
    byte_tokens: bool = False  # `<0xE2>` is a byte
    lead: tuple[str, int] = ("", 0)  # (character, how many) dropped from the start of the whole text
    first_drop: str = ""  # a character dropped from the first entry
    between: str = ""

    def spell(self, entry: str, *, first: bool) -> bytes:
        """The bytes that `entry` adds to the text; `first` if no entry stands before it."""
        if first and self.first_drop:
            entry = entry.replace(self.first_drop, "")
        for old, new in self.replace:
            entry = entry.replace(old, new)
        if self.byte_tokens and (match := _BYTE_TOKEN.fullmatch(entry)):
            return bytes([int(match[1], 16)])
        if self.byte_level and all(character in _BYTE_OF for character in entry):
            return bytes(_BYTE_OF[character] for character in entry)
        return (entry if first else self.between + entry).encode()


def read_spelling(decoder: Mapping[str, Any] | None) -> Spelling:
    """The spelling of a tokenizer.json `decoder`. Raises CheckpointError for one whose text cannot be given out as it comes."""
    if decoder is None:
        return Spelling(between=" ")
    found: dict[str, Any] = {"replace": ()}
    fused = False
    for step in decoder.get("decoders", [decoder]):
        match step:
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if not fused:
                found["replace"] += ((old, new),)
            case {"type": "ByteFallback"} if not fused:
                found["byte_tokens"] = True
            case {"type": "ByteLevel"} if not fused:
                found["byte_level"] = True
            case {"type": "Metaspace", "replacement": str(mark)} if not fused:
                found["replace"] += ((mark, " "),)
                found["first_drop"] = "" if step.get("prepend_scheme") == "never" else mark
            case {"type": "Fuse"}:
                fused = True
            case {"type": "Strip", "content": str(content), "start": int(start), "stop": 0} if fused:
                found["lead"] = (content, start)
            case _:
                raise CheckpointError(
                    f"tokenizer.json: decoder step {json.dumps(step)} is not supported here; supported are ByteLevel, "
                    "Metaspace, and Replace (of a string), ByteFallback, Fuse, Strip (from the start) in this order"
                )
    return Spelling(**found)
