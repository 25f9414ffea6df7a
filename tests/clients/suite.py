"""The openai package's own tests of the endpoints that are served here: their `create` tests, and those of models.

They send every parameter there is, ids of nothing among them. A careful server refuses these, so that the suite is run
twice: as a server is by default, where what is refused is known and said why, and with --lenient, where all have to pass.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tests.clients import places

FILES = ("test_completions", "chat/test_completions", "test_models", "test_embeddings", "test_responses")
CHOSEN = "create or (test_models and not delete)"
"""What else these files test is served by OpenAI alone (fine-tuned models, kept chats) or asks for responses of made-up ids."""

SUITE_S = 1500

REFUSED = (
    (r"^test_completions.*with_all_params", "BadRequestError",
     'suffix is not served, and logit_bias {"foo": 0} names no token'),
    (r"^chat/.*with_all_params", "BadRequestError",
     'logit_bias {"foo": 0} names no token, max_tokens is 0, and functions come beside tools'),
    (r"^test_responses.*with_all_params", "NotFoundError",
     "previous_response_id, conversation and prompt name nothing that is kept"),
    (r"^test_embeddings.*test_(method|raw_response|streaming_response)_create\[(strict|aiohttp)\]",
     "APIResponseValidationError",
     "the package asks for base64 by itself, and where it validates strictly it refuses what it asked for"),
)  # fmt: skip
"""Which tests a careful server does not pass, the exception that they end with, and why."""


@dataclass(frozen=True, slots=True)
class Test:
    """One test: its name, and what was wrong. `main` are those of the package's usual HTTP clients; others repeat them."""

    name: str
    wrong: str

    @property
    def main(self) -> bool:
        return "[aiohttp]" not in self.name

    @property
    def why(self) -> str | None:
        """Why a careful server refuses it, where it should, and does so in that way."""
        return next((why for name, kind, why in REFUSED if re.search(name, self.name) and kind in self.wrong), None)


def run(url: str) -> list[Test]:
    """Runs them against a server that takes any model's name. Missing where they cannot be run."""
    folder, report = places.suite(), places.HOME / "suite.xml"
    report.unlink(missing_ok=True)
    files = [f"tests/api_resources/{name}.py" for name in FILES]
    # The suite is written for plugins and options of its own; none of these matter to what it sends.
    pytest = [places.python("requirements.txt"), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", "--tb=short"]
    done = subprocess.run(
        [*pytest, "-k", CHOSEN, f"--junitxml={report}", *files],
        cwd=folder, env={**environment(), "TEST_API_BASE_URL": url}, capture_output=True, text=True, timeout=SUITE_S,
    )  # fmt: skip
    if not report.exists():
        raise places.Missing(f"openai's suite did not run: {(done.stderr or done.stdout)[-500:]}")
    return read(report)


def read(report: Path) -> list[Test]:
    """The tests of a report in JUnit's form."""
    found = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        module, _, _ = case.attrib["classname"].removeprefix("tests.api_resources.").rpartition(".")
        kind = case.attrib["classname"].rpartition(".")[2]
        wrong = [each for each in case if each.tag in ("failure", "error", "skipped")]
        told = wrong[0].attrib.get("message", wrong[0].tag) if wrong else ""
        found.append(Test(f"{module.replace('.', '/')}::{kind}::{case.attrib['name']}", told))
    return found


def environment() -> dict[str, str]:
    """This process's without what would change how a client's Python starts."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "OPENAI", "ANTHROPIC"))}


def count(tests: Sequence[Test], *, main: bool) -> str:
    """Passed of all."""
    mine = [test for test in tests if test.main is main]
    return f"{sum(not test.wrong for test in mine)} of {len(mine)}"
