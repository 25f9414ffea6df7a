"""What all tests share: the folder of real data, tiny checkpoints, and the figures printed after a run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

DATA = "SHARDWISE_TEST_DATA"


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


@pytest.fixture
def figures(record_property: Callable[[str, object], None]) -> Iterator[dict[str, object]]:
    """What a test puts in here is printed after the run, under "figures"."""
    found: dict[str, object] = {}
    yield found
    for name, value in found.items():
        record_property(f"figure: {name}", value)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = []
    for kind in ("passed", "failed"):
        for report in terminalreporter.stats.get(kind, ()):
            found = [(n.removeprefix("figure: "), v) for n, v in report.user_properties if n.startswith("figure: ")]
            if found:
                shown = ", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in found)
                lines.append(f"{report.nodeid.split('::')[-1]}: {shown}")
    if lines:
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.write_line(line)
