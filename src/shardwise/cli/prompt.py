"""The prompt, from wherever it comes: a flag, a file or standard input, always as UTF-8 that is not empty."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import BinaryIO

from shardwise.errors import RequestError

LIMIT_BYTES = 16 * 2**20
HOW = "give {} TEXT, --prompt-file FILE, or text on standard input"


def read_prompt(args: argparse.Namespace, flag: str = "--prompt") -> str:
    """The text; `flag` is what the user knows it by. One line end at the end of a file or of standard input is left out."""
    if args.prompt is not None and args.prompt != "-":
        name, text = flag, decoded(os.fsencode(args.prompt), flag)
    else:
        name, data = _bytes(args, HOW.format(flag))
        text = decoded(data, name).removesuffix("\n").removesuffix("\r")
    if not text:
        raise RequestError(f"the prompt from {name} is empty; {HOW.format(flag)}")
    return text


def _bytes(args: argparse.Namespace, how: str) -> tuple[str, bytes]:
    """(what it is called, its bytes) of a file or of standard input."""
    if args.prompt_file is not None and args.prompt is None:
        try:
            with Path(args.prompt_file).open("rb") as file:
                return args.prompt_file, bounded(file, args.prompt_file)
        except OSError as error:
            raise RequestError(f"--prompt-file {args.prompt_file}: {error.strerror}; {how}") from None
    if args.prompt is None and sys.stdin.isatty():
        raise RequestError(f"there is no prompt; {how}")
    return "standard input", bounded(sys.stdin.buffer, "standard input")


def bounded(file: BinaryIO, name: str) -> bytes:
    """All bytes of a file; RequestError if they are more than any model's context holds."""
    data = file.read(LIMIT_BYTES + 1)
    if len(data) > LIMIT_BYTES:
        raise RequestError(f"the prompt from {name} is longer than {LIMIT_BYTES >> 20} MiB; no context holds that")
    return data


def decoded(data: bytes, name: str) -> str:
    """UTF-8 as text; RequestError that says which byte is not."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"the prompt from {name} is not UTF-8: byte {error.start} is 0x{data[error.start]:02X}; save or send it as UTF-8"
        ) from None
