"""What one client is made to do, each thing by its name, told in lines of JSON. Runs where that client is installed, and so
knows nothing but the standard library.

A script is called with the server's address, a key, and the name of the model.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

URL, KEY, MODEL = sys.argv[1:4] if len(sys.argv) > 3 else ("", "", "")
CHECKS: list[Callable[[], Any]] = []


def check(work: Callable[[], Any]) -> Callable[[], Any]:
    """One thing to do; its name is told, and an exception is a failure."""
    CHECKS.append(work)
    return work


def run() -> None:
    """Does all in their order, whatever fails."""
    for work in CHECKS:
        began, wrong = time.monotonic(), ""
        try:
            done = work()
            if inspect.iscoroutine(done):
                asyncio.run(done)
        except Exception as error:
            script = Path(sys.argv[0]).name
            frames = traceback.extract_tb(error.__traceback__)
            lines = [frame.lineno for frame in frames if Path(frame.filename).name == script]
            wrong = f"line {lines[-1] if lines else '?'}: {type(error).__name__}: {error}"
        told = {"check": work.__name__.replace("_", " "), "wrong": wrong, "s": round(time.monotonic() - began, 2)}
        print(json.dumps(told), flush=True)


def raised(kind: type[Exception], work: Callable[[], object]) -> Any:
    """The exception of that very kind that `work` ends with."""
    try:
        work()
    except kind as error:
        assert type(error) is kind, f"{type(error).__name__} and not {kind.__name__}"
        return error
    raise AssertionError(f"no {kind.__name__}")
