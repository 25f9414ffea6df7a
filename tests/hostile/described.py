"""schemathesis against the server's own description: what it takes and gives is what /openapi.json says.

It runs in an environment of its own (`.clients/schemathesis`), which is made where it is missing; SCHEMATHESIS names another.
"""

from __future__ import annotations

import base64
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

LONG = ("max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens")

@schemathesis.hook
def before_call(context, case, kwargs):
    """Answers are kept short: what is looked for does not depend on their length."""
    if isinstance(case.body, dict):
        for holder in (case.body, case.body.get("parameters"), case.body.get("sampling_params")):
            for name in LONG if isinstance(holder, dict) else ():
                if type(holder.get(name)) is int and holder[name] > 4:
                    holder[name] = 4
'''

LEFT_OUT = ("positive_data_acceptance",)
"""A schema cannot say all that a field takes: a prompt may be too long, a token beyond the vocabulary, a model unknown."""


def command(home: Path = HOME) -> Path:
    """The program, installed where it is missing."""
    if given := os.environ.get("SCHEMATHESIS"):
        return Path(given)
    found = home / "bin" / "st"
    if not found.exists():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
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
                # Each that it accepts forms the ranks anew: that is tested where it is meant.
                "--exclude-path-regex", "/admin/",
                # Else it makes keys of its own up, and most cases end with the key.
                "--generation-with-security-parameters", "false",
                "--phases", "examples,fuzzing", "--workers", "2", "--seed", str(seed), "--continue-on-failure", "--no-shrink",
                "--generation-database", "none", "--exclude-checks", ",".join(LEFT_OUT), "--suppress-health-check", "all",
                "--no-color", "--report", "ndjson", "--report-ndjson-path", str(report),
            ],
            cwd=folder, env={**os.environ, "SCHEMATHESIS_HOOKS": "hooks"}, capture_output=True, text=True,
        )  # fmt: skip
        if not report.exists():
            raise RuntimeError(
                f"schemathesis made no report, and ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
            )
        return {"version": VERSION, "exit_code": done.returncode, **counted(report.read_text(encoding="utf-8"))}


def counted(report: str) -> dict[str, Any]:
    """Of a report: cases, the effective ones among them, checks by name, statuses of answers, failures and errors."""
    checks: Counter[str] = Counter()
    statuses: Counter[int] = Counter()
    endpoints: Counter[str] = Counter()
    failures: list[str] = []
    cases = 0
    for line in report.splitlines():
        kind, event = next(iter(json.loads(line).items()))
        if "Error" in kind:
            failures.append(f"{kind}: {json.dumps(event)[:600]}")
        if kind != "ScenarioFinished":
            continue
        recorder = event.get("recorder") or {}
        cases += len(recorder.get("cases") or {})
        for each in (recorder.get("interactions") or {}).values():
            statuses[response_status(each)] += 1
            endpoints[recorder["label"]] += effective(each)
        for number, found in (recorder.get("checks") or {}).items():
            for check in found:
                checks[check["name"]] += 1
                if check["status"] != "success":
                    failures.append(f"{recorder.get('label')}: {check['name']}: {json.dumps(check)[:600]} ({number})")
    return {
        "cases": cases,
        "effective": endpoints.total(),
        "endpoints": dict(endpoints.most_common()),
        "statuses": dict(sorted(statuses.items())),
        "checks": dict(checks),
        "failures": failures[:50],
    }  # fmt: skip


def response_status(interaction: dict[str, Any]) -> int:
    """0 where nothing came."""
    return int((interaction.get("response") or {}).get("status_code", 0))


def effective(interaction: dict[str, Any]) -> bool:
    """Whether a request reached an endpoint: its key, its path and its method were right, and it was answered."""
    status = response_status(interaction)
    if status == 404:
        content = interaction["response"].get("content") or {}
        return b"unknown_path" not in base64.b64decode(content.get("$base64") or "")
    return status not in (0, 401, 405)
