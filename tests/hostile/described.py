"""schemathesis against the server's own description: what it takes and gives is what /openapi.json says.

It runs in an environment of its own (`.clients/schemathesis`), which is made where it is missing; SCHEMATHESIS names another.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

VERSION = "4.32.5"
HOME = Path(__file__).parents[2] / ".clients" / "schemathesis"

HOOKS = '''
import schemathesis

@schemathesis.hook
def before_call(context, case, kwargs):
    """Answers are kept short: what is looked for does not depend on their length."""
    if isinstance(case.body, dict):
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            if type(case.body.get(name)) is int and case.body[name] > 4:
                case.body[name] = 4
'''

LEFT_OUT = ("positive_data_acceptance",)
"""A schema cannot say all that a field takes: a prompt may be too long, a token beyond the vocabulary, a model unknown."""


def command() -> Path:
    """The program, installed where it is missing."""
    if given := os.environ.get("SCHEMATHESIS"):
        return Path(given)
    found = HOME / "bin" / "st"
    if not found.exists():
        subprocess.run([sys.executable, "-m", "venv", str(HOME)], check=True)
        pip = [str(HOME / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, f"schemathesis=={VERSION}"], check=True)
    return found


def described(url: str, key: str, seed: int, examples: int) -> dict[str, Any]:
    """Counts of its cases and checks, and its failures, of which none may be."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "hooks.py").write_text(HOOKS, encoding="utf-8")
        report = Path(folder) / "report.ndjson"
        done = subprocess.run(
            [
                str(command()), "run", f"{url}/openapi.json", "-H", f"Authorization: Bearer {key}", "-n", str(examples),
                "--phases", "examples,fuzzing", "--workers", "2", "--seed", str(seed), "--continue-on-failure", "--no-shrink",
                "--generation-database", "none", "--exclude-checks", ",".join(LEFT_OUT), "--suppress-health-check", "all",
                "--no-color", "--report", "ndjson", "--report-ndjson-path", str(report),
            ],
            cwd=folder, env={**os.environ, "SCHEMATHESIS_HOOKS": "hooks"}, capture_output=True, text=True,
        )  # fmt: skip
        return {"version": VERSION, "exit_code": done.returncode, **counted(report.read_text(encoding="utf-8"))}


def counted(report: str) -> dict[str, Any]:
    """Of a report: cases, checks by name, statuses of answers, failures."""
    checks: Counter[str] = Counter()
    statuses: Counter[int] = Counter()
    failures: list[str] = []
    cases = 0
    for line in report.splitlines():
        scenario = json.loads(line).get("ScenarioFinished")
        recorder = (scenario or {}).get("recorder") or {}
        cases += len(recorder.get("cases") or {})
        for each in (recorder.get("interactions") or {}).values():
            if response := each.get("response"):
                statuses[response["status_code"]] += 1
        for number, found in (recorder.get("checks") or {}).items():
            for check in found:
                checks[check["name"]] += 1
                if check["status"] != "success":
                    failures.append(f"{recorder.get('label')}: {check['name']}: {json.dumps(check)[:600]} ({number})")
    return {"cases": cases, "statuses": dict(sorted(statuses.items())), "checks": dict(checks), "failures": failures[:50]}
