"""transformers' answers, computed once a session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.parity.reference import Reference, prompts, reference


@pytest.fixture(scope="session")
def references(checkpoint: Callable[[str], Path]) -> Callable[..., list[Reference]]:
    """references(family) or references(family, dtype): what transformers makes of the two prompts of all tests."""

    @cache
    def of(name: str, dtype: str = "float32") -> list[Reference]:
        return [reference(checkpoint(name), prompt, dtype) for prompt in prompts()]

    return of
