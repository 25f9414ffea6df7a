"""The command as a whole: help, versions, names mistyped, exit codes, and what is imported for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from shardwise.cli import main
from shardwise.cli.flags import memory
from tests.cli.command import shardwise

HEAVY = ("torch", "numpy", "rich", "tokenizers", "jinja2", "huggingface_hub", "msgspec")


def loaded(*argv: str) -> set[str]:
    """Which heavy packages one command line imports into its process."""
    code = (
        "import io, sys, contextlib\nfrom shardwise.cli.main import run\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    try: code = run(sys.argv[1:])\n    except SystemExit as end: code = end.code or 0\n"
        f"print(code, *(name for name in {HEAVY!r} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=100)
    status, *found = done.stdout.split()
    assert status == "0", done.stderr
    return set(found)


def test_help_and_version_import_nothing_heavy():
    assert loaded("--help") == set()
    assert loaded("--version") == set()


def test_inspect_imports_neither_torch_nor_a_tokenizer():
    assert loaded("inspect", "-tp", "2") == {"rich"}
    assert loaded("inspect", "-tp", "2", "--json") == set()


def test_generate_never_imports_torch_into_its_own_process():
    found = loaded("generate", "-tp", "2", "--json", "-p", "Hello", "-n", "2")
    assert not found & {"torch", "rich", "jinja2", "huggingface_hub"}


def test_help_names_every_command():
    for args in ((), ("--help",), ("help",)):
        done = shardwise(*args)
        assert done.code == 0
        assert all(f"  {command} " in done.out for command in main.COMMANDS)


@pytest.mark.parametrize("command", main.COMMANDS)
def test_every_command_has_help(command):
    done = shardwise(command, "--help")
    assert (done.code, done.err) == (0, "")
    cut = ("--tensor-parallel-size", "-tp", "--shares", "--tensor-split", "--num-shard")
    others = {"complete": ("--url",), "reshard": (*cut, "--url"), "bench": ("limits", "peers")}  # which cut nothing themselves
    for name in others.get(command, cut):
        assert name in done.out


def test_version():
    from importlib.metadata import version

    assert shardwise("--version").out == f"shardwise {version('shardwise')}\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["genrate"], "there is no command 'genrate'; did you mean generate?"),
        (["bake"], "there is no command 'bake'; commands are generate, chat, serve, complete, reshard, inspect"),
        (["-tp", "2"], "-tp comes before any command"),
        (["generate", "--temprature", "1"], "unknown flag --temprature, nearest: --temperature; `shardwise generate --help`"),
        (["generate", "--frobnicate"], "unknown flag --frobnicate; `shardwise generate --help` lists the flags"),
        (["generate", "a", "b"], "unexpected 'b'"),
        (["generate", "--top-k"], "--top-k: expected one argument"),
        (["generate", "--top-k", "many"], "--top-k: invalid int value: 'many'"),
        (["inspect", "-tp", "two"], "invalid int value: 'two'"),
    ],
)
def test_mistyped(args, message):
    done = shardwise(*args)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("shardwise: error: ") and message in done.err
    assert done.err.count("\n") == 1


def test_unexpected_failures_are_one_line_and_a_traceback_where_it_is_wanted():
    code = (
        "import sys\nfrom shardwise.cli import inspect, main\n"
        "def broken(argv): raise ZeroDivisionError('twice\\nover')\ninspect.run = broken\nmain.main(['inspect'])"
    )
    run = [sys.executable, "-c", code]
    plain = subprocess.run(run, capture_output=True, text=True, env={"SHARDWISE_DEBUG": "0"}, timeout=60)
    assert plain.returncode == 70
    assert plain.stderr == (
        "shardwise: error: internal error: ZeroDivisionError: twice over; "
        "set SHARDWISE_DEBUG=1 for the traceback; please report\n"
    )
    debug = subprocess.run(run, capture_output=True, text=True, env={"SHARDWISE_DEBUG": "1"}, timeout=60)
    assert debug.returncode == 70 and "Traceback" in debug.stderr


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1), ("1500MiB", 1500 * 2**20), ("1.5GiB", 3 * 2**29), ("16GB", 16 * 10**9), ("64 kb", 64_000), ("2g", 2**31),
        ("7KiB", 7168), ("1TiB", 2**40),
    ],
)  # fmt: skip
def test_memory_sizes(text, size):
    assert memory(text) == size
