"""From what the user calls a model to a folder on this disk: a path, the bundled model, or a download from the hub.

Only safetensors, JSON and tokenizer files are ever fetched: no pickle and no code. What is in the folder is
`spec.checkpoint`'s affair. huggingface_hub and rich are imported on use, so that `shardwise --help` stays quick.
"""

from __future__ import annotations

import difflib
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from shardwise.errors import UserError
from shardwise.spec.checkpoint import PICKLE_SUFFIXES, conversion

if TYPE_CHECKING:
    from rich.console import Console

BUNDLED = "shardling"

# Sub-folders hold other models' files or other formats (onnx/, original/), consolidated.* the same weights once more.
ALLOW = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")
IGNORE = ("*/*", "consolidated*.safetensors", "*.bin", "*.pt", "*.py")

# huggingface_hub's own rule, but with the organisation: names without one are only kept for models of before 2020.
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_HUB_ID = re.compile(rf"(?!.*(?:--|\.\.|\.git$)){_PART}/{_PART}")
_REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_./-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def bundled() -> Path:
    """The folder of the small model that is installed with the package."""
    return Path(__file__).parents[1] / "data" / BUNDLED


def resolve_model(
    model: str | Path | None = None, *, revision: str | None = None, console: Console | None = None, weights: bool = True
) -> Path:
    """The folder of a model: a path as it is, "shardling" or nothing the bundled one, "org/name" downloaded from the hub.

    An existing folder goes before a hub id. `revision` is a branch, tag or commit of the hub. A progress bar is shown if
    `console` (by default standard error) is a terminal. Without `weights` the hub is asked for all else.
    A UserError says in one line what is wrong and what would work.
    """
    name = BUNDLED if model is None else str(model)
    folder = bundled() if name == BUNDLED else _local(name)
    if folder is None:
        return _from_hub(name, _checked(revision), console, weights)
    if revision is not None:
        raise UserError(f"revision {revision!r} is for models of the hub, but {name!r} is a local folder; leave it out")
    return folder


def resolve_config(model: str | Path | None = None, *, revision: str | None = None) -> Path:
    """The config.json of a model, or any JSON file given in its place; of a model of the hub, that file alone is
    downloaded, unless it is in the cache."""
    name = BUNDLED if model is None else str(model)
    with suppress(OSError, RuntimeError):  # such a name is `_local`'s to explain
        if (path := Path(name).expanduser()).is_file():
            return path
    if name == BUNDLED or _local(name) is not None:
        return resolve_model(name, revision=revision) / "config.json"
    from huggingface_hub import HfApi, constants, hf_hub_download

    revision = _checked(revision)
    try:
        return Path(hf_hub_download(name, "config.json", revision=revision, local_files_only=True))
    except OSError:  # huggingface_hub's "not in the cache"
        if constants.HF_HUB_OFFLINE:
            raise UserError(f"HF_HUB_OFFLINE is set, and {_not_cached(name)}; unset it, or {_otherwise()}") from None
    try:
        # Asked first, because a download that fails is tried again for half a minute.
        HfApi().model_info(name, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        return Path(hf_hub_download(name, "config.json", revision=revision))
    except Exception as problem:
        raise _explained(problem, name, revision) from problem


def model_name(model: str | Path, config: Path) -> str:
    """What to call a model whose config.json is `config`: its folder, the file's own name, or the hub id as it was given."""
    if not Path(model).exists():
        return str(model)
    return config.resolve().parent.name if config.name == "config.json" else config.stem


def cached_models() -> list[str]:
    """Hub ids whose weights are, at least in part, in the local cache; sorted."""
    from huggingface_hub import constants

    folders = Path(constants.HF_HUB_CACHE).glob("models--*--*")
    found = [folder for folder in folders if any(folder.glob("snapshots/*/*.safetensors"))]
    return sorted(folder.name.removeprefix("models--").replace("--", "/", 1) for folder in found)


# A path


def _local(name: str) -> Path | None:
    """The folder that `name` is, or None if it is a hub id; a UserError if it can be neither."""
    path = Path(name)
    if not name.strip():
        raise UserError(f"model {name!r} is empty; give a folder, a hub id like org/name, or {BUNDLED!r}")
    try:
        path = path.expanduser()
        if path.is_dir():
            return path
        there = path.exists()
    except (OSError, RuntimeError) as problem:  # RuntimeError: no such user after ~
        raise UserError(f"model {name!r} cannot be looked up: {problem}; give a folder or a hub id org/name") from None
    if there:
        raise UserError(f"model {name!r} is a file; give the folder that holds it: {path.parent}")
    if name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1 or "\\" in name:
        raise UserError(f"model {name!r}: there is no such folder{_nearest(path)}; give one that holds a config.json")
    if not _HUB_ID.fullmatch(name):
        raise UserError(
            f"model {name!r} is neither a folder here{_nearest(path)} nor a hub id, which looks like org/name;"
            f" {BUNDLED!r} is the model that comes with shardwise"
        )
    return None


def _nearest(path: Path) -> str:
    """Names beside a missing path that resemble it, as the end of a clause."""
    try:
        beside = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    except OSError:
        return f", nor is there {str(path.parent)!r} to hold it"
    near = difflib.get_close_matches(path.name, beside, n=3)
    return f" (nearest: {', '.join(str(path.parent / name) for name in near)})" if near else ""


# The hub


def _checked(revision: str | None) -> str | None:
    # It becomes part of a path in the cache.
    if revision is not None and not _REVISION.fullmatch(revision):
        raise UserError(f"revision {revision!r} is not a branch, tag or commit; the usual one is 'main'")
    return revision


def _from_hub(repo: str, revision: str | None, console: Console | None, weights: bool) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import RevisionNotFoundError
    from rich.console import Console

    if constants.HF_HUB_OFFLINE or (revision is not None and _COMMIT.fullmatch(revision)):
        # What a commit holds never changes, so nobody need be asked about a copy that is complete.
        copy = _cached(repo, revision, weights)
        if copy is not None:
            return copy
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"HF_HUB_OFFLINE is set, and {_not_cached(repo)}; unset it, or {_otherwise()}")
    console = console or Console(stderr=True)
    try:
        # Listed first, to refuse before gigabytes come; and with a timeout, which snapshot_download's own question lacks.
        timeout_s = constants.HF_HUB_ETAG_TIMEOUT
        found = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=timeout_s)
    except RevisionNotFoundError as problem:
        raise _explained(problem, repo, revision) from problem
    except Exception as problem:  # the HTTP client's errors changed their module with huggingface_hub 2
        copy = _cached(repo, revision, weights)
        if copy is None:
            raise _explained(problem, repo, revision) from problem
        reason = f"{constants.ENDPOINT} did not give {repo} ({_first_line(problem)}); using the copy in the cache"
        console.print(reason, style="yellow", markup=False, highlight=False, soft_wrap=True)
        return copy
    sizes = {file.rfilename: file.size or 0 for file in found.siblings or ()}
    wanted = _wanted(repo, list(sizes), weights)
    with _bars(console, repo, sum(sizes[file] for file in _not_here(repo, found.sha, wanted))) as bar:
        try:
            folder = snapshot_download(
                repo, revision=revision, allow_patterns=_allowed(weights), ignore_patterns=[*IGNORE], tqdm_class=bar
            )
        except Exception as problem:
            raise _explained(problem, repo, revision) from problem
    return Path(folder)


def _allowed(weights: bool) -> list[str]:
    return [pattern for pattern in ALLOW if weights or pattern != "*.safetensors"]


def _cached(repo: str, revision: str | None, weights: bool) -> Path | None:
    """The complete copy in the cache, if there is one; the hub is not asked."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                repo, revision=revision, allow_patterns=_allowed(weights), ignore_patterns=[*IGNORE], local_files_only=True
            )
        )
    except LocalEntryNotFoundError:
        return None
    # Another program may have fetched the tokenizer alone, and left no list of what belongs to the model.
    return folder if any(folder.glob("*.safetensors" if weights else "config.json")) else None


def _wanted(repo: str, files: list[str], weights: bool) -> list[str]:
    """The files to fetch; a UserError if weights are wanted and none are among them that can be read safely."""
    allowed = [file for file in files if any(fnmatchcase(file, pattern) for pattern in _allowed(weights))]
    wanted = [file for file in allowed if not any(fnmatchcase(file, pattern) for pattern in IGNORE)]
    if not weights or any(file.endswith(".safetensors") for file in wanted):
        return wanted
    pickles = [file for file in files if file.endswith(PICKLE_SUFFIXES)]
    if pickles:
        raise UserError(
            f"{repo} has no *.safetensors, only {_some(pickles)}: that is pickle, which can run any code when loaded, so it is"
            f" not downloaded; look for a converted copy (https://huggingface.co/spaces/safetensors/convert makes one), or, if"
            f" you trust it, convert it: {conversion(repo, './' + repo.split('/')[1])}"
        )
    if any(file.endswith(".gguf") for file in files):
        raise UserError(f"{repo} has only GGUF files, which are not read; take the repository it was made from")
    raise UserError(f"{repo} has no *.safetensors at its top, only {_some(files) or 'nothing'}; take another repository")


def _not_here(repo: str, commit: str | None, files: Sequence[str]) -> list[str]:
    from huggingface_hub import try_to_load_from_cache

    return [file for file in files if not isinstance(try_to_load_from_cache(repo, file, revision=commit), str)]


@contextmanager
def _bars(console: Console, repo: str, total_bytes: int) -> Iterator[type[Any]]:
    """A class with the part of tqdm's face that huggingface_hub uses; all its bars feed one bar of bytes on the console.

    The library counts files, bytes from the network and bytes on disk in three bars. The furthest of the two that count
    bytes is shown: they differ only with Xet storage, where data come compressed.
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(repo, total=total_bytes, visible=total_bytes > 0)
        lock = threading.Lock()

        class Bar:
            format_dict: ClassVar[dict[str, Any]] = {}

            def __init__(self, *_: object, unit: str = "it", total: float = 0, initial: float = 0, **__: object) -> None:
                self.total, self.n, self.unit = total, initial, unit

            def update(self, n: float | None = 1) -> None:
                with lock:
                    self.n += n or 0
                    if self.unit == "B" and self.n > progress.tasks[0].completed:
                        progress.update(task, completed=min(self.n, total_bytes))

            def __enter__(self) -> Bar:
                return self

            def __exit__(self, *_: object) -> None: ...

            def _nothing(self, *_: object, **__: object) -> None: ...

            close = refresh = set_description = set_description_str = set_postfix_str = _nothing

        yield Bar


# What went wrong, in one line


def _explained(problem: Exception, repo: str, revision: str | None) -> UserError:
    """What the library raised, as something to act on."""
    from huggingface_hub import constants, errors, get_token

    hub = constants.ENDPOINT
    status = getattr(getattr(problem, "response", None), "status_code", None)
    if isinstance(problem, errors.GatedRepoError):
        return UserError(f"{repo} is gated: ask for access at {hub}/{repo}, then set HF_TOKEN to a token of that account")
    if isinstance(problem, errors.RevisionNotFoundError):
        return UserError(f"{repo} has no revision {revision!r}; its branches and tags are at {hub}/{repo}/tree/main")
    # Without a token the hub answers 401 for what does not exist; the library says so for https addresses only.
    if isinstance(problem, errors.RepositoryNotFoundError) or (status == 401 and get_token() is None):
        return UserError(
            f"{hub} has no model {repo}, or it is private, and there is no such folder here either; check the spelling, or set"
            f" HF_TOKEN (or `hf auth login`) for a private one"
        )
    if status in (401, 403):
        return UserError(
            f"{hub} refused access to {repo} ({status}); the token in HF_TOKEN or of `hf auth login` is wrong, expired or lacks"
            f" the right to read it: make a new one at {hub}/settings/tokens, or unset it for public models"
        )
    if status is not None:
        return UserError(f"{hub} answered {status} for {repo}; try again later, or {_otherwise()}")
    if isinstance(problem, OSError) and problem.errno is not None:
        cache = constants.HF_HUB_CACHE
        return UserError(
            f"{repo} cannot be written to {cache}: {problem.strerror}; free space there, or set HF_HOME to a better"
        )
    return UserError(
        f"{repo} could not be fetched from {hub} ({_first_line(problem)}), and {_not_cached(repo)}; try again (files that are"
        f" finished are kept), or {_otherwise()}"
    )


def _not_cached(repo: str) -> str:
    from huggingface_hub import constants

    return f"no complete copy of {repo} is in the cache {constants.HF_HUB_CACHE}"


def _otherwise() -> str:
    models = cached_models()
    if not models:
        return "give a local folder (the cache holds no model yet)"
    return f"give a local folder, or one of the models in the cache: {_some(models)}"


def _first_line(problem: BaseException) -> str:
    """The last cause is the most telling; the library's own text goes on for paragraphs."""
    while problem.__cause__ is not None:
        problem = problem.__cause__
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return f"{type(problem).__name__}: {lines[0][:160]}" if lines else type(problem).__name__


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
