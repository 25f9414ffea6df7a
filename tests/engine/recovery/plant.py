"""The engine's parts with one line changed: private copies of their modules, made from their text, as those of the scheduler.

A plant names a module, a piece of its text that occurs there exactly once, and what stands there instead; where the code has
moved on, planting fails.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import shardwise.engine.core
from tests.engine.recovery.world import Parts

SOURCE = Path(shardwise.engine.core.__file__).parents[1]
COPIED = (
    "sched.limits",
    "sched.pages",
    "sched.pooling",
    "sched.sequence",
    "sched.flight",
    "sched.holdings",
    "sched.roster",
    "sched.suspects",
    "sched.scheduler",
    "engine.draws",
    "engine.core",
    "engine.supervise",
    "engine.process_ranks",
)
"""Each imports only those before it. Values that tests share with the copies are not copied."""


@dataclass(frozen=True)
class Plant:
    """`new` instead of `old` in `module`."""

    name: str
    module: str
    old: str
    new: str

    def text(self, module: str) -> str:
        """The text of a module, with the change where it is the one."""
        text = (SOURCE / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8")
        if module == self.module:
            assert text.count(self.old) == 1, f"{self.name}: {self.old!r} occurs {text.count(self.old)} times in {module}"
            text = text.replace(self.old, self.new)
        for name in COPIED:
            text = text.replace(f"from shardwise.{name} import", f"from planted.{name} import")
        return text


@contextmanager
def planted(plant: Plant) -> Iterator[Parts]:
    """The parts of a copy with the change."""
    names = ["planted", "planted.sched", "planted.engine", *(f"planted.{name}" for name in COPIED)]
    modules = {name: ModuleType(name) for name in names}
    sys.modules |= modules
    try:
        for name in COPIED:
            code = compile(plant.text(name), f"{name} with {plant.name}", "exec")
            exec(code, modules[f"planted.{name}"].__dict__)
        ranks, core = modules["planted.engine.process_ranks"], modules["planted.engine.core"]
        yield Parts(ranks.ProcessRanks, core.Core, modules["planted.engine.supervise"].Policy)
    finally:
        for name in modules:
            del sys.modules[name]
