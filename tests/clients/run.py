"""Real clients, unmodified and pinned, against `shardwise serve`: a table of what worked; the exit code says whether all did.

`python -m tests.clients.run [NAME ...] [--json FILE]` (make clients) makes their environments under .clients the first time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from shardwise.bench.about import commit, machine
from tests.clients import places, suite
from tests.server.live import Live, serving

KEY, MODEL = "sk-clients", "shardling"
CLIENT_S = 900
PYTHON, LITELLM = "requirements.txt", "requirements-litellm.txt"


@dataclass
class Row:
    """A line of the table. `wrong` are the things that should have worked, `known` those that are refused, by the reason."""

    name: str
    done: str
    wrong: list[str] = field(default_factory=list)
    known: dict[str, list[str]] = field(default_factory=dict)
    took_s: float = 0.0


Client = Callable[[Live], Row]


def script(name: str, file: str, requirements: str, package: str) -> Client:
    """A client that is a script in an environment."""

    def run(live: Live) -> Row:
        python = places.python(requirements)
        version = f"import importlib.metadata as m; print(m.version({package!r}))"
        told = subprocess.run([python, "-c", version], capture_output=True, text=True, env=suite.environment()).stdout
        return checked(f"{name} {told.strip()}", [python, places.HERE / file], live)

    return run


def node(live: Live) -> Row:
    command, file = places.node("with_openai.mjs")
    package = json.loads((file.parent / "node_modules" / "openai" / "package.json").read_text())
    return checked(f"openai for Node {package['version']}", [command, file], live)


def checked(name: str, command: Sequence[str | Path], live: Live) -> Row:
    """Runs a client that tells each thing it did in a line of JSON."""
    row = Row(name, "")
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # else it looks for a list of prices on the internet
    done = subprocess.run(
        [*command, live.url, KEY, MODEL],
        capture_output=True, text=True, timeout=CLIENT_S, env={**suite.environment(), **quiet},
    )  # fmt: skip
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    row.wrong = [f"{each['check']}: {each['wrong']}" for each in told if each["wrong"]]
    row.done = f"{len(told) - len(row.wrong)} of {len(told)}"
    if done.returncode != 0 or not told:
        row.wrong.append(f"ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return row


def own_suite(*, lenient: bool) -> Client:
    """openai's own tests."""

    def run(live: Live) -> Row:
        row = Row(f"openai's own tests{', --lenient' if lenient else ''}", "")
        tests = suite.run(live.url)
        row.done = f"{suite.count(tests, main=True)} (aiohttp: {suite.count(tests, main=False)})"
        for test in tests:
            if not test.wrong:
                continue
            if lenient or test.why is None:
                row.wrong.append(f"{test.name}: {test.wrong}")
            else:
                row.known.setdefault(test.why, []).append(test.name)
        return row

    return run


GROUPS: tuple[tuple[tuple[str, ...], dict[str, Client]], ...] = (
    (
        ("--api-key", KEY),
        {
            "openai": script("openai", "with_openai.py", PYTHON, "openai"),
            "anthropic": script("anthropic", "with_anthropic.py", PYTHON, "anthropic"),
            "llm": script("llm", "with_llm.py", PYTHON, "llm"),
            "litellm": script("litellm", "with_litellm.py", LITELLM, "litellm"),
            "huggingface": script("huggingface_hub", "with_huggingface.py", PYTHON, "huggingface_hub"),
            "node": node,
        },
    ),
    (
        ("--api-key", KEY, "--max-num-seqs", "1", "--max-queue", "1"),
        {"busy": script("openai, a full queue", "with_openai_busy.py", PYTHON, "openai")},
    ),
    (("--served-model-name", "*"), {"suite": own_suite(lenient=False)}),
    (("--served-model-name", "*", "--lenient"), {"lenient": own_suite(lenient=True)}),
)
"""The flags of each server, and which clients it gets."""


def main() -> int:
    known = [name for _, clients in GROUPS for name in clients]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these; there are {', '.join(known)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what came of it there, too")
    given = parser.parse_args()
    names: list[str] = given.names
    if strange := [name for name in names if name not in known]:
        parser.error(f"no client is called {strange[0]!r}; there are {', '.join(known)}")
    about = {"command": " ".join(["make clients", *names]), "commit": commit(), "machine": machine()}
    rows: list[Row] = []
    for flags, clients in GROUPS:
        wanted = {name: client for name, client in clients.items() if not names or name in names}
        if wanted:
            rows += asked(flags, wanted)
    table(rows)
    if given.json:
        result = {**about, "clients": [asdict(row) for row in rows]}
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 1 if any(row.wrong for row in rows) else 0


def asked(flags: Sequence[str], clients: dict[str, Client]) -> list[Row]:
    """One server, and each of `clients` after the other."""
    rows = []
    with ExitStack() as stack:
        live = stack.enter_context(serving("-tp", "2", *flags))
        for name, client in clients.items():
            sys.stderr.write(f"{name} ...\n")
            began = time.monotonic()
            try:
                row = client(live)
            except (places.Missing, subprocess.TimeoutExpired) as error:
                row = Row(name, "not run", wrong=[str(error)])
            row.took_s = round(time.monotonic() - began, 1)
            rows.append(row)
        rows[-1].wrong += left(live)
    return rows


def left(live: Live) -> list[str]:
    """What a server should not say, run or hold when its clients are gone."""
    until = time.monotonic() + 60
    while (running := live.ask("/slots", key=KEY)[1]) and time.monotonic() < until:
        time.sleep(0.1)
    wrong = [f"still running: {each}" for each in running]
    return wrong + [f"the server said: {line}" for line in live.said if line.startswith(("ERROR", "Traceback"))]


def table(rows: Sequence[Row]) -> None:
    wide = max(len(row.name) for row in rows)
    for row in rows:
        verdict = "ok" if not row.wrong else "FAILED"
        print(f"{row.name:{wide}}  {row.done:>28}  {row.took_s:6.1f} s  {verdict}")
    for row in rows:
        for why, names in row.known.items():
            print(f"\n{row.name}: {len(names)} not passed, as it should be: {why}")
            print("\n".join(f"  {name}" for name in names))
        for line in row.wrong:
            print(f"\n{row.name}: {line[:1000]}")


if __name__ == "__main__":
    sys.exit(main())
