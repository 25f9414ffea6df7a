"""Tests of compiled kernels run on every path that this CPU has."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from shardwise import native

needs_compiled = pytest.mark.skipif(not native.available(), reason="the compiled kernels are not installed")


def paths() -> tuple[str, ...]:
    """The paths that this CPU has, the plainest first."""
    best = native.function("sw_best", result=native.NUMBER)() if native.available() else -1
    return native.PATHS[: best + 1]


@contextmanager
def on(path: str) -> Iterator[None]:
    """The library set to a path for that time."""
    use = native.function("sw_use", native.NUMBER, result=native.NUMBER)
    before = native.path()
    assert before is not None and use(native.PATHS.index(path)) == 1
    try:
        yield
    finally:
        use(native.PATHS.index(before))


def each_path(test: Callable[..., None]) -> Callable[..., None]:
    """The test once for each path that there is, with the library set to it for that time."""

    def on_path(path: str, **given: Any) -> None:
        with on(path):
            test(**given)

    own = inspect.signature(test).parameters.values()
    on_path.__signature__ = inspect.Signature([*own, inspect.Parameter("path", inspect.Parameter.KEYWORD_ONLY)])
    on_path.__name__, on_path.__doc__, on_path.__module__ = test.__name__, test.__doc__, test.__module__
    return pytest.mark.parametrize("path", paths())(on_path)
