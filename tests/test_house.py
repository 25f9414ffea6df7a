"""The house rules that a machine can check: what may be imported, called, named, and how long it may be."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_floors import PURE, SOURCE, modules, parsed, part

ROOT = SOURCE.parents[1]
LINES, FUNCTION_LINES = 450, 60
WORDS = {
    "utils",
    "util",
    "helpers",
    "helper",
    "misc",
    "common",
    "base",
    "manager",
    "handler",
    "impl",
    "wrapper",
    "mixin",
    "info",
}


def run(code: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Python in a fresh process that sees the sources."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | {"PYTHONPATH": str(SOURCE.parent)}
    return subprocess.run([sys.executable, *flags, "-c", code], env=env, capture_output=True, text=True, timeout=60)


# --- imports ----------------------------------------------------------------------------------------------------------


def test_pure_parts_import_where_nothing_is_installed():
    pure = [module for module in modules(SOURCE) if part(module, "shardwise") in PURE]
    assert len(pure) > 10
    # -S: no site-packages. The blocked names guard against a machine that has them elsewhere.
    blocked = "import sys\nsys.modules.update(dict.fromkeys(('torch', 'numpy', 'msgspec', 'transformers', 'safetensors')))\n"
    done = run(blocked + "".join(f"import {module}\n" for module in pure), "-S")
    assert done.returncode == 0, done.stderr


def test_the_control_cannot_import_what_is_blocked():
    assert "ModuleNotFoundError" in run("import torch", "-S").stderr
    assert "ModuleNotFoundError" in run("import sys; sys.modules['torch'] = None; import torch").stderr


def test_import_shardwise_loads_no_torch_and_no_numpy():
    done = run("import sys, shardwise; print(*sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)))")
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stdout + done.stderr


# --- calls ------------------------------------------------------------------------------------------------------------

UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "multiprocessing"}
SAFE_MODULES = ("multiprocessing.shared_memory", "multiprocessing.resource_tracker")  # bytes and names, no objects
UNSAFE_NAMES = {"builtins.eval", "builtins.exec", "torch.load", "torch.multiprocessing"}
UNSAFE_ENDS = ("_object", "_object_list", ".ProcessPoolExecutor")


def unsafe(text: str) -> Iterator[tuple[int, str]]:
    """(line, name) of whatever could run code out of data: pickles in any dress, eval, exec, collectives of objects."""
    for node in ast.walk(parsed(text)):
        yield from ((getattr(node, "lineno", 0), name) for name in names_in(node) if is_unsafe(name))


def names_in(node: ast.AST) -> list[str]:
    """What the node imports, reads or passes, with dots. An attribute of something unnamed keeps its own name alone."""
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=module, names=names):
            return [f"{module or ''}.{alias.name}" for alias in names]
        case ast.Name(id="eval" | "exec" as name):
            return [f"builtins.{name}"]
        case ast.Attribute(value=ast.Name(id=owner), attr=name):
            return [f"{owner}.{name}"]
        case ast.Attribute(attr=name):
            return [f".{name}"]
        case ast.keyword(arg="allow_pickle", value=value) if not (isinstance(value, ast.Constant) and value.value is False):
            return ["pickle"]
    return []


def is_unsafe(name: str) -> bool:
    """Whether a dotted name is one of those, or a collective of pickled objects."""
    if any(f"{name}.".startswith(f"{safe}.") for safe in SAFE_MODULES):
        return False
    return name.split(".")[0] in UNSAFE_MODULES or name in UNSAFE_NAMES or name.endswith(UNSAFE_ENDS)


def test_nothing_runs_code_out_of_data():
    found = [
        f"{m}:{line}: {name}" for m, path in modules(SOURCE).items() for line, name in unsafe(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "import os, marshal",
        "from pickle import loads",
        "def f():\n    import shelve",
        "import joblib.memory",
        "eval('1')",
        "f = exec",
        "import builtins\nbuiltins.eval('1')",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "dist.all_gather_object(a, b)",
        "torch.distributed.broadcast_object_list(a)",
        "from torch.distributed import gather_object",
        "numpy.load('x', allow_pickle=True)",
        "from multiprocessing import Process",
        "from concurrent.futures import ProcessPoolExecutor",
        "import torch.multiprocessing",
    ],
)
def test_planted_calls_are_found(text):
    assert len(list(unsafe(text))) == 1


@pytest.mark.parametrize(
    "text",
    ["model.eval()", "json.load(f)", "safetensors.torch.load(b)", "from json import load", "n.load('x', allow_pickle=False)"],
)
def test_harmless_calls_are_let_be(text):
    assert list(unsafe(text)) == []


# --- sizes and names --------------------------------------------------------------------------------------------------


def long_functions(text: str) -> list[str]:
    """Functions above the limit, from `def` to the last line."""
    functions = (n for n in ast.walk(parsed(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    return [f"{f.name}: {n} lines" for f in functions if (n := (f.end_lineno or 0) - f.lineno + 1) > FUNCTION_LINES]


def words(name: str) -> set[str]:
    """The words of a file's or a class's name, in small letters."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", name)}


def bad_names(path: Path, text: str) -> list[str]:
    """Names of the file, its folders and its classes that say nothing."""
    classes = [node.name for node in ast.walk(parsed(text)) if isinstance(node, ast.ClassDef)]
    return [name for name in (*path.with_suffix("").parts, *classes) if words(name) & WORDS]


def house() -> Iterator[tuple[Path, str]]:
    """Every Python file of ours, by its path from the root."""
    for folder in ("src", "tests", "examples", "recipes", "bench"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT), path.read_text(encoding="utf-8")


def test_files_are_short():
    long = [f"{path}: {n} lines" for path, text in house() if (n := len(text.splitlines())) > LINES]
    assert long == [], f"a file has {LINES} lines at most; cut it in two, or write the decision down"


def test_functions_are_short():
    long = [f"{path}: {found}" for path, text in house() for found in long_functions(text)]
    assert long == [], f"a function has {FUNCTION_LINES} lines at most"


def test_names_say_something():
    assert [f"{path}: {name}" for path, text in house() for name in bad_names(path, text)] == []


def test_the_controls_of_sizes_and_names():
    assert long_functions("def f():\n" + "    pass\n" * FUNCTION_LINES) == [f"f: {FUNCTION_LINES + 1} lines"]
    assert long_functions("async def f():\n" + "    pass\n" * (FUNCTION_LINES - 1)) == []
    empty = ast.unparse(ast.Module([], []))
    for name in ("utils.py", "spec/helpers.py", "common/x.py", "base.py", "path_utils.py", "misc.py"):
        assert bad_names(Path(name), empty), name
    for name in ("PageManager", "Handler", "HTTPHandler", "CommImpl", "ModelWrapper", "LoraMixin", "DeviceInfo", "BaseModel"):
        assert bad_names(Path("x.py"), f"class {name}: pass") == [name]
    for name in ("Information", "Basis", "Database", "Handle", "Shares", "Commons"):
        assert not bad_names(Path("x.py"), f"class {name}: pass"), name
    assert not bad_names(Path("src/shardwise/spec/models/information.py"), empty)


# --- text -------------------------------------------------------------------------------------------------------------

# Put together here, so that this file does not name such a place itself.
PLACES = re.compile(r"(?<![\w.~$}/-])/(?:" + "|".join(("work", "root", "home", "Users")) + r")/\w")


def texts() -> Iterator[tuple[str, str]]:
    """(path, text) of every text file under version control."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    assert listed.returncode == 0, f"the tracked files are listed by git: {listed.stderr}"
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        try:
            yield name, path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue  # weights and images; files removed and not yet committed


def test_no_text_names_a_place_on_somebody_s_machine():
    found = [
        f"{name}:{i}: {line.strip()[:80]}"
        for name, text in texts()
        for i, line in enumerate(text.splitlines(), 1)
        if PLACES.search(line)
    ]
    assert found == []


def test_the_control_of_places():
    for place in ("work", "root", "home", "Users"):
        assert PLACES.search(f"cd /{place}/x") and PLACES.search(f"'/{place}/x'")
        assert not PLACES.search(f"https://example.org/{place}/x")
        assert not PLACES.search(f"src/{place}/x")
    assert len(list(texts())) > 20
