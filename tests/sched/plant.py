"""The real scheduler with one line changed: a private copy of its modules, made from their text.

A plant names a module, a piece of its text that occurs there exactly once, and what stands there instead; where the code has
moved on, planting fails.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from shardwise.sched import scheduler
from shardwise.sched.scheduler import Scheduler

FOLDER = Path(scheduler.__file__).parent
COPIED = ("limits", "pages", "pooling", "sequence", "flight", "holdings", "roster", "suspects", "scheduler")
"""Each imports only those before it. Steps and events are values that tests share with the copy."""


@dataclass(frozen=True)
class Plant:
    """`new` instead of `old` in `module`."""

    name: str
    module: str
    old: str
    new: str

    def text(self, module: str) -> str:
        """The text of a module, with the change where it is the one."""
        text = (FOLDER / f"{module}.py").read_text(encoding="utf-8")
        if module == self.module:
            assert text.count(self.old) == 1, f"{self.name}: {self.old!r} occurs {text.count(self.old)} times in {module}.py"
            text = text.replace(self.old, self.new)
        for name in COPIED:
            text = text.replace(f"from shardwise.sched.{name} import", f"from planted.{name} import")
        return text


@contextmanager
def planted(plant: Plant) -> Iterator[Callable[..., Scheduler]]:
    """The class Scheduler of a copy with the change."""
    modules = {"planted": ModuleType("planted")} | {f"planted.{name}": ModuleType(f"planted.{name}") for name in COPIED}
    sys.modules |= modules
    try:
        for name in COPIED:
            code = compile(plant.text(name), f"{name}.py with {plant.name}", "exec")
            exec(code, modules[f"planted.{name}"].__dict__)
        yield modules["planted.scheduler"].Scheduler
    finally:
        for name in modules:
            del sys.modules[name]
