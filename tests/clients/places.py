"""Where the clients live: under .clients, an environment for each set of requirements, made again when those change."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

HERE = Path(__file__).parent
HOME = HERE.parents[1] / ".clients"
OPENAI = "3.54.0"
"""The version whose test suite is run; requirements.txt has the same."""

INSTALL_S = 1200


class Missing(Exception):
    """A client cannot be run, and why."""


def python(requirements: str) -> Path:
    """The interpreter of an environment with these `requirements`, a file beside this one."""
    place, wanted = HOME / Path(requirements).stem, (HERE / requirements).read_text()
    made = place / "made"
    found = place / "bin" / "python"
    if not made.exists() or made.read_text() != wanted:
        shutil.rmtree(place, ignore_errors=True)
        _run(sys.executable, "-m", "venv", place)
        _run(found, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", HERE / requirements)
        made.write_text(wanted)
    return found


def node(script: str) -> tuple[str, Path]:
    """The command `node`, and a copy of `script` that finds its packages."""
    npm, command = shutil.which("npm"), shutil.which("node")
    if npm is None or command is None:
        raise Missing("there is no node or no npm on the path")
    place, wanted = HOME / "node", (HERE / "package.json").read_text()
    made = place / "made"
    if not made.exists() or made.read_text() != wanted:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        shutil.copy(HERE / "package.json", place)
        _run(npm, "install", "--no-audit", "--no-fund", "--silent", cwd=place)
        made.write_text(wanted)
    return command, Path(shutil.copy(HERE / script, place))


def suite() -> Path:
    """The folder of openai's source distribution, which has its tests."""
    place = HOME / f"openai-{OPENAI}"
    if not place.exists():
        pip = (python("requirements.txt"), "-m", "pip", "--disable-pip-version-check", "download", "--quiet")
        _run(*pip, "--no-deps", "--no-binary", "openai", "--dest", HOME, f"openai=={OPENAI}")
        with tarfile.open(HOME / f"{place.name}.tar.gz") as archive:
            archive.extractall(HOME, filter="data")
    return place


def _run(*command: str | Path, cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=INSTALL_S)
    if done.returncode != 0:
        raise Missing(f"{' '.join(map(str, command[:5]))} ... failed: {(done.stderr or done.stdout).strip()[-500:]}")
