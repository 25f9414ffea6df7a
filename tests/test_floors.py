"""The floors hold: a part of shardwise imports only parts below it, pure parts the standard library alone, none in a circle."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "shardwise"

FLOORS = (
    ("errors", "env", "bound", "children", "native", "telemetry", "spec"),
    ("sched", "plan", "comm", "sim"),
    ("nn",),
    ("runtime",),
    ("engine",),
    ("server", "train", "bench", "verify", "chaos", "llm"),
    ("cli", "__main__"),
)
"""From below to above. The façade `__init__` stands on top of the engine and is imported by no part but the last floor."""

ARROWS = {
    ("spec", "errors"),
    ("env", "errors"),
    ("native", "env"),
    ("native", "errors"),
    ("telemetry", "errors"),
    ("sim", "sched"),
    ("sim", "plan"),
    ("__main__", "cli"),
    ("__init__", "llm"),
}
"""Which sibling imports which."""

PURE = ("errors", "env", "bound", "children", "native", "telemetry", "spec", "sched", "plan", "sim")

FLOOR = {part: i for i, floor in enumerate(FLOORS) for part in floor} | {"__init__": len(FLOORS) - 2}


parsed = cache(ast.parse)
"""A text's tree; the checks ask for that of each file several times."""


def modules(root: Path) -> dict[str, Path]:
    """Every module below `root`, by its dotted name."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(module: str, path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of whatever the file imports: anywhere in it, for types alone too, or by a call with a name."""
    package = module.split(".") if path.stem == "__init__" else module.split(".")[:-1]
    for node in ast.walk(parsed(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{stem}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def part(module: str, root: str) -> str:
    """The part of shardwise that a module or a name in one belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == root else "__init__"


def breaches(root: Path) -> list[str]:
    """Every import that goes up, sideways without an arrow, or out of a pure part; and every part without a floor."""
    found = []
    known = modules(root)
    for module, path in known.items():
        here = part(module, root.name)
        if here not in FLOOR:
            found.append(f"{module}: no floor is drawn for {here}")
            continue
        for line, name in imports(module, path):
            first = name.split(".")[0]
            if first != root.name:
                if here in PURE and first not in sys.stdlib_module_names:
                    found.append(f"{module}:{line}: {here} is pure and imports {first}")
                continue
            there = part(name, root.name)
            if f"{root.name}.{there}" not in known:
                there = "__init__"  # a name of the façade itself, such as its version
            if there not in FLOOR or (here != there and FLOOR[there] >= FLOOR[here] and (here, there) not in ARROWS):
                found.append(f"{module}:{line}: {here} imports {there}")
    return found


def circles(root: Path) -> list[str]:
    """Every module that reaches itself by imports."""
    known = modules(root)
    graph = {m: sorted({t for _, name in imports(m, p) if (t := owner(name, known)) and t != m}) for m, p in known.items()}
    found = []
    for start in graph:
        seen, stack = set[str](), [*graph[start]]
        while stack:
            at = stack.pop()
            if at not in seen:
                seen.add(at)
                stack += graph[at]
        if start in seen:
            found.append(start)
    return found


def owner(name: str, known: dict[str, Path]) -> str | None:
    """The module that an imported name is, or is taken from."""
    stem = name.rpartition(".")[0]
    return name if name in known else stem if stem in known else None


def test_floors_hold():
    assert breaches(SOURCE) == []


def test_no_circles():
    assert circles(SOURCE) == []


def test_pure_parts_are_found():
    seen = {part(module, "shardwise") for module in modules(SOURCE)}
    assert {"errors", "spec", "sched"} <= seen
    assert len(modules(SOURCE)) > 20


# --- the control: a planted breach is found ---------------------------------------------------------------------------


def plant(root: Path, **files: str) -> Path:
    """A package of `files` by dotted path (`__` for a dot)."""
    for name, text in files.items():
        path = root / "house" / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for folder in path.relative_to(root).parents:
            if folder.name:
                (root / folder / "__init__.py").touch()
    return root / "house"


@pytest.mark.parametrize(
    ("where", "text", "expected"),
    [
        ("spec__a", "import house.sched", "house.spec.a:1: spec imports sched"),
        ("spec__a", "from house import nn", "house.spec.a:1: spec imports nn"),
        ("spec__a", "from ..nn import linear", "house.spec.a:1: spec imports nn"),
        ("spec__a", "from .. import nn", "house.spec.a:1: spec imports nn"),
        ("spec__a__b", "from ... import nn", "house.spec.a.b:1: spec imports nn"),
        ("sched__a", "import house.plan", "house.sched.a:1: sched imports plan"),
        ("sched__a", "import house.sim", "house.sched.a:1: sched imports sim"),
        ("comm__a", "import house.sched", "house.comm.a:1: comm imports sched"),
        ("errors", "import house.spec.axes", "house.errors:1: errors imports spec"),
        ("server__a", "from house.train import loop", "house.server.a:1: server imports train"),
        ("nn__a", "def f():\n    from house.engine import engine", "house.nn.a:2: nn imports engine"),
        ("nn__a", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import house.cli", "house.nn.a:3: nn imports cli"),
        ("nn__a", "import importlib\nimportlib.import_module('house.cli')", "house.nn.a:2: nn imports cli"),
        ("engine__a", "from house import version", "house.engine.a:1: engine imports __init__"),
        ("spec__a", "import torch", "house.spec.a:1: spec is pure and imports torch"),
        ("sched__a", "def f():\n    import numpy.linalg", "house.sched.a:2: sched is pure and imports numpy"),
        ("plan__a", "from msgspec import Struct", "house.plan.a:1: plan is pure and imports msgspec"),
        ("sim__a", "__import__('safetensors')", "house.sim.a:1: sim is pure and imports safetensors"),
        ("telemetry", "from transformers.models import llama", "house.telemetry:1: telemetry is pure and imports transformers"),
        ("shared__a", "", "house.shared: no floor is drawn for shared"),
    ],
)
def test_a_planted_breach_is_found(tmp_path, where, text, expected):
    parts = ("errors", "spec__axes", "sched__x", "plan__x", "sim__x", "comm__x", "nn__linear", "engine__engine")
    parts += ("train__loop", "cli__x")
    root = plant(tmp_path, **(dict.fromkeys(parts, "") | {where: text}))
    assert expected in breaches(root)
    assert len(breaches(root)) == (2 if "no floor" in expected else 1)


def test_what_is_allowed_is_no_breach(tmp_path):
    root = plant(
        tmp_path,
        errors="import os",
        spec__axes="from house.errors import X\nfrom . import boxes\nfrom .boxes import Y",
        spec__boxes="from __future__ import annotations\nimport itertools",
        sched__x="from house.spec import axes",
        plan__x="from house.spec.axes import Axis",
        sim__x="from house.sched import x\nimport house.plan.x",
        nn__x="import torch\nfrom house.comm import x",
        comm__x="import numpy",
        cli__x="from house import version\nimport house.engine.x",
        engine__x="from house.runtime import x",
        runtime__x="from ..nn.x import y",
    )
    assert breaches(root) == []
    assert circles(root) == []


@pytest.mark.parametrize(
    "files",
    [
        {"spec__a": "from house.spec import b", "spec__b": "from house.spec.a import X"},
        {"spec__a": "from . import b", "spec__b": "from . import c", "spec__c": "def f():\n    import house.spec.a"},
    ],
)
def test_a_planted_circle_is_found(tmp_path, files):
    assert circles(plant(tmp_path, **files, spec__d="from house.spec import a")) == [
        f"house.{name.replace('__', '.')}" for name in files
    ]
