"""What all tests share: the folder of real data, tiny checkpoints, and the figures printed after a run."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from shardwise.engine.fake import Answer, FakeEngine
    from shardwise.engine.setup import Setup

DATA = "SHARDWISE_TEST_DATA"
PURE = ("tests/spec/", "tests/sched/")


def pytest_configure() -> None:
    """A shell starts background jobs with Ctrl-C ignored, and children inherit that; tests of Ctrl-C need it heard."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of the pure floors but those that ask transformers: `make pure` runs them, `make unit` the others."""
    for item in items:
        if item.nodeid.startswith(PURE) and "transformers" not in getattr(item, "fixturenames", ()):
            item.add_marker("pure")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Ranks in threads are the parallelism of the tests; torch's own threads would only be in their way."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real weights, configs and texts."""
    folder = os.environ.get(DATA)
    if not folder:
        pytest.skip(f"{DATA} does not say where the real weights, configs and texts are")
    return Path(folder)


@pytest.fixture(scope="session")
def transformers() -> ModuleType:
    """The reference of what is read from configs and computed by modules."""
    reason = "transformers, the reference, is not installed"
    pytest.importorskip("torch", reason=reason)
    return pytest.importorskip("transformers", reason=reason)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """checkpoint(name) is the folder of a tiny checkpoint of that family, built once a session."""
    from tests.checkpoints import FAMILIES, WIDE, build

    known = {**FAMILIES, "wide": WIDE}
    folders: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in folders:
            folders[name] = build(known[name], tmp_path_factory.mktemp(name))
        return folders[name]

    return folder


@pytest.fixture(scope="session")
def setup() -> Setup:
    """The bundled model on one rank, not started."""
    from shardwise.engine.setup import Options, resolve

    return resolve(Options("shardling", device="cpu"))


@pytest.fixture
def fake(setup: Setup) -> Iterator[Callable[..., FakeEngine]]:
    """fake(answer, held=...) is a FakeEngine of the bundled model, closed after the test."""
    from shardwise.engine.fake import FakeEngine

    made: list[FakeEngine] = []

    def make(answer: Answer | None = None, *, held: bool = False) -> FakeEngine:
        made.append(FakeEngine(setup, answer, held=held))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def figures(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """figures(subject, name=value, ...): printed after the run, a line for each subject.

    Over all tests that name the subject, whole numbers are added up, and of other numbers the largest is shown.
    """

    def record(subject: str, **values: float) -> None:
        record_property("figures", (subject, values))

    return record


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    found: dict[str, dict[str, float]] = {}
    for kind in ("passed", "failed"):
        for report in terminalreporter.stats.get(kind, ()):
            for subject, values in (value for name, value in report.user_properties if name == "figures"):
                line = found.setdefault(subject, {})
                for name, value in values.items():
                    before = line.get(name, 0)
                    line[name] = before + value if isinstance(value, int) else max(before, value)
    if found:
        terminalreporter.section("figures")
    for subject, line in found.items():
        shown = "  ".join(f"{name} {v:.6g}" if isinstance(v, float) else f"{name} {v}" for name, v in line.items())
        terminalreporter.write_line(f"{subject:32} {shown}")
