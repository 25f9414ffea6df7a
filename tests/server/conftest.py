"""The fake engine of the tests of the server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shardwise.engine.setup import Setup
from tests.server.engines import ServingFake


@pytest.fixture
def engine(setup: Setup) -> Iterator[ServingFake]:
    """A fake engine that runs."""
    with ServingFake(setup) as made:
        yield made


@pytest.fixture
def held(setup: Setup) -> Iterator[ServingFake]:
    """A fake engine that gives a token only when it is allowed to."""
    with ServingFake(setup, held=True) as made:
        yield made
