"""Fixtures of the tests of responses and messages: a model that thinks and calls, a fake engine of it, a server on that."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shardwise.engine.setup import Setup
from tests.server.drive import Served, serving
from tests.server.scripts import ROUTES, Scripted, thinking_setup

NAME = "thinker"


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory, setup: Setup) -> Setup:
    """The bundled model with the template of one that thinks and calls tools."""
    return thinking_setup(tmp_path_factory.mktemp("thinker"), setup)


@pytest.fixture(scope="module")
def engine(thinker: Setup) -> Iterator[Scripted]:
    """Says what the test last told it to."""
    with Scripted(thinker) as made:
        yield made


@pytest.fixture(scope="module")
def served(engine: Scripted) -> Iterator[Served]:
    """A server on it."""
    with serving(engine, ROUTES, served_model_name=(NAME,)) as made:
        yield made


@pytest.fixture
def held(thinker: Setup) -> Iterator[Scripted]:
    """Gives a token only when it is allowed to."""
    with Scripted(thinker, held=True) as made:
        yield made
