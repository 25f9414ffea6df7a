"""What the tests of `verify` share: a run in this process, ranks as threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shardwise.engine.setup import Options
from shardwise.engine.thread_ranks import ThreadRanks
from shardwise.verify.drive import Advance
from shardwise.verify.run import Plan, Reference, Report, Start, Verification

Verify = Callable[..., Report]


@pytest.fixture
def verify(checkpoint: Callable[[str], Path]) -> Verify:
    """verify(family or folder, degrees, against, limit=..., prompts=..., options...): the report of such a run."""

    def run(
        model: str | Path,
        degrees: tuple[int, ...] = (1, 2),
        against: Reference | None = None,
        *,
        limit: int = 6,
        prompts: Path | None = None,
        start: Start = ThreadRanks,
        **options: object,
    ) -> Report:
        folder = checkpoint(model) if isinstance(model, str) else model
        asked = Options(str(folder), **{"device": "cpu", "threads": 1, **options})  # type: ignore[arg-type]
        plan = Plan(asked, degrees, limit, None if prompts is None else str(prompts), against)
        done: dict[str, list[int]] = {}

        @contextmanager
        def watch(name: str, places: int) -> Iterator[Advance]:
            done[name] = [places]
            yield done[name].append

        report = Verification(plan, start, watch).run()
        for name, (places, *parts) in done.items():
            assert sum(parts) == places, f"{name} was {places} places long, and {sum(parts)} were done"
        return report

    return run
