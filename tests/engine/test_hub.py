"""Models by path, by name and from a hub: each download runs in its own process, for the library reads HF_* at import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from shardwise.engine.hub import bundled, resolve_model
from shardwise.errors import UserError
from shardwise.spec.checkpoint import open_checkpoint
from tests.engine.hub_server import GOOD_TOKEN, Hub, Repo, sha256

SCRIPT = """
import json, sys
from rich.console import Console
from shardwise.engine.hub import resolve_model
from shardwise.errors import UserError

for model, revision in json.loads(sys.argv[1]):
    try:
        print(json.dumps({"path": str(resolve_model(model, revision=revision, console=eval(sys.argv[2])))}))
    except UserError as error:
        print(json.dumps({"error": str(error)}))
"""


def weights(count: int) -> bytes:
    header = json.dumps({"w": {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}}).encode()
    return len(header).to_bytes(8, "little") + header + (bytes(range(251)) * (count // 251 + 1))[:count]


TINY = Repo(
    {
        "config.json": b'{"model_type": "llama"}',
        "tokenizer.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
        "model.safetensors": weights(100),
        "pytorch_model.bin": b"not to be fetched",
        "modeling.py": b"not to be fetched",
        "README.md": b"not to be fetched",
        "onnx/model.safetensors": b"not to be fetched",
        "consolidated.safetensors": b"not to be fetched",
    }
)
REPOS = {
    "tiny/model": TINY,
    "tiny/cut": Repo({"config.json": b"{}", "model.safetensors": weights(12_000_000)}),
    "tiny/pickle": Repo({"config.json": b"{}", "pytorch_model.bin": bytes(10)}),
    "tiny/gguf": Repo({"model-Q4_0.gguf": bytes(10)}),
    "tiny/empty": Repo({"README.md": b""}),
    "tiny/gated": Repo({"config.json": b"{}", "model.safetensors": weights(7)}, gated=True),
    "tiny/private": Repo({"config.json": b"{}", "model.safetensors": weights(9)}, private=True),
}


@dataclass(frozen=True)
class Outcome:
    """What came of each call, in order: a folder or the error's message; and what was written to standard error."""

    results: list[dict[str, str]]
    stderr: str

    def error(self, index: int = 0) -> str:
        message = self.results[index]["error"]
        assert "\n" not in message
        return message

    def path(self, index: int = 0) -> Path:
        return Path(self.results[index]["path"])


def resolve(
    endpoint: str, home: Path, calls: Sequence[tuple[str, str | None]], console: str = "None", **variables: str
) -> Outcome:
    """Call resolve_model in a fresh process that knows nothing of this one's HF_* variables, nor of a proxy."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    variables = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "*", **variables}
    command = [sys.executable, "-c", SCRIPT, json.dumps(list(calls)), console]
    done = subprocess.run(command, env=kept | variables, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return Outcome([json.loads(line) for line in done.stdout.splitlines()], done.stderr)


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub(REPOS) as hub:
        yield hub


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HF_HOME, shared by the tests of this file: who comes first downloads."""
    return tmp_path_factory.mktemp("hf")


@pytest.fixture(scope="module")
def first(hub: Hub, home: Path) -> Outcome:
    """tiny/model once, again, and by its commit: the first download of the file."""
    return resolve(hub.endpoint, home, [("tiny/model", None), ("tiny/model", "main"), ("tiny/model", TINY.commit)])


# From the hub


def test_a_model_is_downloaded_once_and_without_code_or_pickle(hub: Hub, first: Outcome) -> None:
    folder = first.path()
    assert sorted(file.name for file in folder.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert all((folder / file.name).read_bytes() == TINY.files[file.name] for file in folder.iterdir())
    assert open_checkpoint(folder)["w"].shape == (100,)
    assert [first.path(1), first.path(2)] == [folder, folder]
    fetched = [seen.path for seen in hub.seen if seen.method == "GET" and seen.origin == "store"]
    assert len(fetched) == len(set(fetched)), "the second call fetched nothing again"
    assert first.stderr == "", "there is no bar where there is no terminal"


def test_offline_the_cached_copy_is_used(hub: Hub, home: Path, first: Outcome) -> None:
    before = len(hub.seen)
    outcome = resolve(
        hub.endpoint, home, [("tiny/model", None), ("tiny/other", None), ("tiny/model", "other")], HF_HUB_OFFLINE="1"
    )
    assert outcome.path() == first.path()
    assert len(hub.seen) == before, "nothing was asked"
    message = outcome.error(1)
    assert "HF_HUB_OFFLINE" in message and str(home) in message and "one of the models in the cache: tiny/model" in message
    assert "HF_HUB_OFFLINE" in outcome.error(2)


def test_a_hub_that_is_down(home: Path, first: Outcome, tmp_path: Path) -> None:
    with Hub({}) as gone:
        endpoint = gone.endpoint
    outcome = resolve(endpoint, home, [("tiny/model", None), ("tiny/other", None)])
    assert outcome.path() == first.path() and "using the copy in the cache" in outcome.stderr
    message = outcome.error(1)
    assert endpoint in message and "refused" in message and "local folder" in message and "tiny/model" in message
    assert "the cache holds no model yet" in resolve(endpoint, tmp_path, [("tiny/model", None)]).error()


def test_a_cut_connection_is_resumed_where_it_broke(hub: Hub, tmp_path: Path) -> None:
    content = REPOS["tiny/cut"].files["model.safetensors"]
    address = f"/{sha256(content)}"
    hub.cut[address] = 11_000_000  # the library writes pieces of 10 MiB, and resumes after the last that it wrote
    outcome = resolve(hub.endpoint, tmp_path, [("tiny/cut", None)])
    assert (outcome.path() / "model.safetensors").read_bytes() == content
    ranges = [seen.range for seen in hub.seen if seen.path == address]
    assert ranges == [None, f"bytes={10 * 2**20}-"]


def test_models_that_are_not_to_be_had(hub: Hub, tmp_path: Path) -> None:
    names = ["tiny/none", "tiny/private", "tiny/gated", "tiny/pickle", "tiny/gguf", "tiny/empty"]
    before = len(hub.seen)
    outcome = resolve(hub.endpoint, tmp_path, [*((name, None) for name in names), ("tiny/model", "v9")])
    none, private, gated, pickle, gguf, empty, revision = (outcome.error(index) for index in range(7))
    assert f"{hub.endpoint} has no model tiny/none, or it is private" in none and "HF_TOKEN" in none
    assert f"{hub.endpoint} has no model tiny/private" in private
    assert f"tiny/gated is gated: ask for access at {hub.endpoint}/tiny/gated" in gated
    assert "pytorch_model.bin" in pickle and "can run any code" in pickle and 'save_pretrained("./pickle")' in pickle
    assert "GGUF" in gguf and "README.md" in empty
    assert "tiny/model has no revision 'v9'" in revision
    assert not [seen for seen in hub.seen[before:] if seen.origin == "store"], "no weights were fetched"


def test_the_token_opens_what_is_private_and_stays_with_the_hub(hub: Hub, tmp_path: Path) -> None:
    before = len(hub.seen)
    calls: list[tuple[str, str | None]] = [("tiny/private", None), ("tiny/none", None), ("tiny/gated", None)]
    outcome = resolve(hub.endpoint, tmp_path, calls, HF_TOKEN=GOOD_TOKEN)
    assert open_checkpoint(outcome.path()).bytes == 9
    assert "has no model tiny/none" in outcome.error(1) and "tiny/gated is gated" in outcome.error(2)
    # The library may ask for things of its own, too, and does so as a stranger.
    seen = [entry for entry in hub.seen[before:] if "tiny" in entry.path or entry.origin == "store"]
    assert {entry.token for entry in seen if entry.origin == "hub"} == {GOOD_TOKEN}
    assert {entry.token for entry in seen if entry.origin == "store"} == {None}


def test_a_wrong_token_and_a_bar(hub: Hub, tmp_path: Path) -> None:
    outcome = resolve(hub.endpoint, tmp_path, [("tiny/model", None)], HF_TOKEN="hf_bad")
    assert "refused access to tiny/model (401)" in outcome.error() and "HF_TOKEN" in outcome.error()
    terminal = "Console(stderr=True, force_terminal=True, width=120)"
    outcome = resolve(hub.endpoint, tmp_path, [("tiny/model", None)], terminal)
    size = sum(len(TINY.files[file.name]) for file in outcome.path().iterdir())
    assert f"{size}/{size} bytes" in outcome.stderr and "tiny/model" in outcome.stderr


# From this disk


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert resolve_model(tmp_path) == tmp_path and resolve_model(str(tmp_path)) == tmp_path
    assert resolve_model() == resolve_model("shardling") == bundled()
    assert bundled().parts[-3:] == ("shardwise", "data", "shardling")
    with pytest.raises(UserError, match="revision 'main' is for models of the hub"):
        resolve_model(tmp_path, revision="main")


def test_a_path_that_leads_nowhere_is_not_looked_for_on_a_hub(tmp_path: Path) -> None:
    (tmp_path / "llama-small").mkdir()
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match=f"no such folder .nearest: {tmp_path}/llama-small"):
        resolve_model(tmp_path / "lama-small")
    with pytest.raises(UserError, match=f"is a file; give the folder that holds it: {tmp_path}"):
        resolve_model(tmp_path / "model.safetensors")
    for name in ["./nowhere", "~/nowhere/", "a/b/c", "nowhere/", "a\\b", "/no/where", "~no-such-user/x"]:
        with pytest.raises(UserError, match=r"no such folder|cannot be looked up"):
            resolve_model(name)


@pytest.mark.parametrize(
    "name", ["gpt2", "", " ", "a b/c", "-a/b", "a/b-", "a--b/c", "a/b..c", "a/b.git", "ä/b", "a/\nb", "a/b\n", "a" * 5000]
)
def test_what_is_neither_path_nor_hub_id_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"hub id"):
        resolve_model(name)


@pytest.mark.parametrize("revision", ["../main", "a..b", "", "/x", "a b", "-x", "x\n"])
def test_a_revision_cannot_leave_the_cache(revision: str) -> None:
    with pytest.raises(UserError, match="is not a branch, tag or commit"):
        resolve_model("tiny/model", revision=revision)


def test_nothing_heavy_is_imported_until_it_is_needed() -> None:
    code = "import sys, shardwise.engine.hub; print(sorted({'huggingface_hub', 'rich', 'torch', 'numpy'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
