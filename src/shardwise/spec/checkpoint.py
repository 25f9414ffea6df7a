"""What a folder of safetensors files holds: names, dtypes, shapes and byte ranges, without reading a single weight.

Stricter than the safetensors library on purpose: whatever is accepted here can be read by plain offset, and a damaged or
half-downloaded file is refused before any memory is reserved for it. It does not know what a model is, nor who reads.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import difflib
import heapq
import json
import os
import re
import reprlib
import shlex
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from shardwise.errors import CheckpointError, ConfigError, UserError

# Bits of one element. The names are safetensors' own, not torch's: a file may hold dtypes that torch has not.
DTYPE_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip

# The library's own limit; an index is held to it too, as it lists the same names.
HEADER_LIMIT_BYTES = 100_000_000
JSON_LIMIT_BYTES = 16 * 2**20

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_FIELDS = {"dtype", "shape", "data_offsets"}
_AGAIN = "the file is incomplete or damaged: download it again"
# What people most often have in place of a safetensors file.
_LOOKALIKES = {
    b"version ": "it is a Git LFS pointer, not the weights: run `git lfs pull` in its folder",
    b"PK\x03\x04": "it is a zip archive, which is how torch.save writes pickles: convert it to safetensors",
    b"GGUF": "it is a GGUF file: download the model's safetensors files instead",
    b"<": "it looks like a web page: download the file itself",
}
# A value in one short line, whatever the file put there.
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 120, 120
_show = _SHORT.repr
_SURROGATE = re.compile("[\ud800-\udfff]")
_PART = re.compile(r"(.+)-(\d{5,})-of-(\d{5,})\.safetensors")


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor in a file: `dtype` is safetensors' code, `start` and `stop` are absolute byte offsets in `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int

    @property
    def bytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Checkpoint:
    """All tensors of a folder by name, in the order of their files and, within a file, of their offsets."""

    folder: Path
    tensors: Mapping[str, Stored]

    @property
    def bytes(self) -> int:
        """Bytes of all tensors, headers not counted."""
        return sum(stored.bytes for stored in self.tensors.values())

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(stored.file for stored in self.tensors.values()))

    def __len__(self) -> int:
        return len(self.tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> Stored:
        """The tensor `name`; a CheckpointError that lists the nearest names if there is none."""
        stored = self.tensors.get(name)
        if stored is None:
            # Whole similarity is slow, and there may be 100 000 names: only those of the same start and end are compared.
            near = difflib.get_close_matches(name, heapq.nlargest(200, self.tensors, lambda other: _shared(name, other)))
            hint = f"nearest: {_names(near)}" if near else f"it holds {len(self.tensors)}, none of a similar name"
            raise CheckpointError(f"{self.folder} holds no tensor {_show(name)}; {hint}")
        return stored


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Read the headers of every file of a checkpoint and check them against each other; a CheckpointError says what is wrong.

    `model.safetensors` is taken if it is there, as transformers does; else the files of `model.safetensors.index.json`;
    else every *.safetensors file in the folder.
    """
    folder = Path(folder)
    names = _listing(folder)
    if SINGLE in names:
        tensors = read_header(folder / SINGLE)
    elif INDEX in names:
        tensors = _indexed(folder)
    else:
        files = [name for name in names if name.endswith(".safetensors")]
        if not files:
            raise _no_safetensors(folder, names)
        _check_parts(folder, files)
        tensors = _merged([folder / name for name in files])
    if not tensors:
        raise CheckpointError(f"{folder}: its safetensors files hold no tensor at all; download the model again")
    return Checkpoint(folder, MappingProxyType(tensors))


def read_header(path: str | Path) -> dict[str, Stored]:
    """The tensors of one safetensors file, by name in the order of their offsets; a CheckpointError says what is wrong."""
    file_bytes = _size(path := Path(path), CheckpointError)
    if file_bytes < 8:
        raise CheckpointError(f"{path}: has {file_bytes} bytes, a safetensors file at least 10; {_AGAIN}")
    first = _read(path, 0, 8, CheckpointError)
    length = int.from_bytes(first, "little")
    if length > min(HEADER_LIMIT_BYTES, file_bytes - 8):
        hint = next((hint for start, hint in _LOOKALIKES.items() if first.startswith(start)), _AGAIN)
        limit = f"the file has {file_bytes} bytes and the limit is {HEADER_LIMIT_BYTES}"
        raise CheckpointError(f"{path}: the header claims {length} bytes, but {limit}; {hint}")
    raw = _read(path, 8, length, CheckpointError)
    if not raw.startswith(b"{"):
        raise CheckpointError(f"{path}: the header starts with {raw[:1]!r} instead of '{{'; {_AGAIN}")
    entries = _json_object(path, raw, CheckpointError, strict=True)
    if "__metadata__" in entries:
        _check_metadata(path, entries.pop("__metadata__"))
    data_start = 8 + length
    found = [_stored(path, name, entry, data_start, file_bytes) for name, entry in entries.items()]
    found.sort(key=lambda stored: (stored.start, stored.stop))
    _check_cover(path, found, data_start, file_bytes)
    return {stored.name: stored for stored in found}


def read_json(path: str | Path) -> dict[str, Any]:
    """A small JSON object such as config.json; a ConfigError names the file if it is missing, too large or not one.

    Infinity and NaN are accepted, for Python writes them: configs of state-space models hold them.
    """
    return _json_object(Path(path), _whole(Path(path), JSON_LIMIT_BYTES, ConfigError), ConfigError)


def conversion(source: str | Path, target: str) -> str:
    """A shell command that rewrites a pickled model as safetensors, what save_pretrained writes since transformers 4.35."""
    old, new = (json.dumps(str(place), ensure_ascii=False) for place in (source, target))
    load = "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T"
    return f"python -c {shlex.quote(f'{load}; [C.from_pretrained({old}).save_pretrained({new}) for C in (M, T)]')}"


# One file: bytes, JSON, entries


def _size(path: Path, error: type[UserError]) -> int:
    """Bytes of a regular file, reached through symlinks as in the hub's cache."""
    try:
        status = path.stat()
    except (OSError, ValueError) as problem:  # ValueError: a NUL in the name
        reason = getattr(problem, "strerror", None) or str(problem)
        link = f" (a symlink to {path.readlink()})" if path.is_symlink() else ""
        raise error(f"{path}{link}: cannot be read: {reason}; mend the path, or download it") from None
    if not stat.S_ISREG(status.st_mode):
        raise error(f"{path}: is not a file; put the file itself there")
    return status.st_size


def _read(path: Path, start: int, length: int, error: type[UserError]) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(length)
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror}; check its rights and the disk") from None
    if len(data) != length:
        raise error(f"{path}: ended after {start + len(data)} of {start + length} bytes; {_AGAIN}")
    return data


def _whole(path: Path, limit_bytes: int, error: type[UserError]) -> bytes:
    size = _size(path, error)
    if size > limit_bytes:
        raise error(f"{path}: has {size} bytes, more than the {limit_bytes} that such a file may have; download it again")
    return _read(path, 0, size, error)


def _json_object(path: Path, raw: bytes, error: type[UserError], *, strict: bool = False) -> dict[str, Any]:
    """`strict` refuses what safetensors' JSON reader (serde_json) would refuse and Python's would not."""
    try:
        text = raw.decode("utf-8")
        number = _strict_number if strict else None
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=number, parse_int=number)
    except UnicodeDecodeError as problem:
        raise error(f"{path}: byte {problem.start} of its JSON is not UTF-8; {_AGAIN}") from None
    except RecursionError:
        raise error(f"{path}: its JSON is nested too deeply; {_AGAIN}") from None
    except ValueError as problem:
        raise error(f"{path}: is not valid JSON: {problem}; mend it, or download it again") from None
    if not isinstance(value, dict):
        raise error(f"{path}: holds a JSON {type(value).__name__} where an object {{...}} is needed; {_AGAIN}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {_show(twice)} appears twice")
    return found


def _strict_number(text: str) -> int:
    """Whole numbers: Python would read -0 as the count 0, which serde_json refuses, and would take NaN."""
    if text in ("-0", "NaN", "Infinity", "-Infinity"):
        raise ValueError(f"{text} is not a count")
    return int(text)


def _is_text(value: object) -> bool:
    """Python's JSON reader lets half a surrogate pair through; nothing could print or store such a name."""
    return isinstance(value, str) and _SURROGATE.search(value) is None


def _check_metadata(path: Path, metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(_is_text(key) and _is_text(text) for key, text in metadata.items()):
        raise CheckpointError(f"{path}: __metadata__ is {_show(metadata)}, not an object of strings; {_AGAIN}")


def _stored(path: Path, name: str, entry: object, data_start: int, file_bytes: int) -> Stored:
    where = f"{path}: tensor {_show(name)}"
    if not _is_text(name):
        raise CheckpointError(f"{where}: the name is not valid Unicode; {_AGAIN}")
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise CheckpointError(f"{where}: is {_show(entry)}, not exactly dtype, shape and data_offsets; {_AGAIN}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    bits = DTYPE_BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        raise CheckpointError(f"{where}: dtype is {_show(dtype)}; known are {', '.join(DTYPE_BITS)}")
    if not _are_counts(shape):
        raise CheckpointError(f"{where}: shape is {_show(shape)}, not a list of counts; {_AGAIN}")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where}: data_offsets is {_show(offsets)}, not [begin, end]; {_AGAIN}")
    need_bits = _bits(shape, bits)
    if need_bits is None or need_bits % 8:
        raise CheckpointError(f"{where}: shape {_show(shape)} of {dtype} is not a possible number of bytes; {_AGAIN}")
    begin, end = offsets
    if end - begin != need_bits // 8:
        raise CheckpointError(
            f"{where}: shape {_show(shape)} of {dtype} needs {need_bits // 8} bytes, data_offsets give {end - begin}; {_AGAIN}"
        )
    if data_start + end > file_bytes:
        raise CheckpointError(f"{where}: ends at byte {data_start + end}, but the file has only {file_bytes}; {_AGAIN}")
    return Stored(name, dtype, tuple(shape), path, data_start + begin, data_start + end)


def _are_counts(value: object) -> bool:
    # `type` and not isinstance: true and false are ints to Python, but not counts.
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**64 for item in value)


def _bits(shape: Iterable[int], bits: int) -> int | None:
    """Bits of a tensor, or None beyond 2**63. A zero does not excuse its neighbours: strides are products, too."""
    empty = False
    for dim in shape:
        empty = empty or dim == 0
        bits *= dim or 1
        if bits >= 2**63:
            return None
    return 0 if empty else bits


def _check_cover(path: Path, found: list[Stored], data_start: int, file_bytes: int) -> None:
    """Every byte of the data belongs to exactly one tensor. `found` is in the order of offsets."""
    end, last = data_start, "the header"
    for stored in found:
        if stored.start != end:
            kind = "overlaps" if stored.start < end else "leaves a hole after"
            raise CheckpointError(
                f"{path}: tensor {_show(stored.name)} {kind} {last}: it begins at byte {stored.start}, not {end}; {_AGAIN}"
            )
        end, last = stored.stop, f"tensor {_show(stored.name)}"
    if end != file_bytes:
        raise CheckpointError(
            f"{path}: {last} ends at byte {end} of {file_bytes}: the last {file_bytes - end} belong to no tensor; {_AGAIN}"
        )


# A folder: which files, and do they agree


def _listing(folder: Path) -> list[str]:
    """The names in a folder, sorted."""
    try:
        if not stat.S_ISDIR(folder.stat().st_mode):
            raise CheckpointError(f"{folder}: is a file; give the folder that holds it: {folder.parent}")
        return sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: there is no such folder; give one that holds {SINGLE}") from None
    except OSError as problem:
        raise CheckpointError(f"{folder}: cannot be read: {problem.strerror}; check its rights and links") from None


def _no_safetensors(folder: Path, names: list[str]) -> CheckpointError:
    pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    if pickles:
        return CheckpointError(
            f"{folder}: holds {_names(pickles)} but no *.safetensors: it is pickle, which can run any code when loaded, so it"
            f" is refused; if you trust it, convert it: {conversion(folder, f'{folder}-safetensors')}"
        )
    if any(name.endswith(".gguf") for name in names):
        return CheckpointError(
            f"{folder}: holds GGUF files but no *.safetensors, and GGUF is not read; download the model's safetensors files,"
            f" or convert with transformers: from_pretrained(..., gguf_file=...) and save_pretrained(...)"
        )
    return CheckpointError(f"{folder}: holds {_names(names) or 'nothing'}, but no *.safetensors; download those of the model")


def _check_parts(folder: Path, files: list[str]) -> None:
    """Without an index, the names are all there is to tell that a part is missing."""
    for name in files:
        part = _PART.fullmatch(name)
        if part is None:
            continue
        stem, digits, total = part[1], len(part[2]), int(part[3])
        # A lying total must not make this loop long: one part more than there are files settles it.
        for number in range(1, min(total, len(files) + 1) + 1):
            wanted = f"{stem}-{number:0{digits}d}-of-{part[3]}.safetensors"
            if wanted not in files:
                raise CheckpointError(f"{folder / wanted}: is missing, though {name} says there are {total}; download it")


def _merged(files: Iterable[Path]) -> dict[str, Stored]:
    tensors: dict[str, Stored] = {}
    for file in files:
        for name, stored in read_header(file).items():
            if name in tensors:
                raise CheckpointError(f"{file}: tensor {_show(name)} is also in {tensors[name].file.name}; remove one of them")
            tensors[name] = stored
    return tensors


def _indexed(folder: Path) -> dict[str, Stored]:
    index = folder / INDEX
    where = _weight_map(index)
    tensors = _merged(folder / file for file in sorted(set(where.values())))
    for name, file in where.items():
        if name not in tensors:
            raise CheckpointError(f"{index}: puts tensor {_show(name)} in {file}, which does not hold it; download both")
    for name, stored in tensors.items():
        if name not in where:
            raise CheckpointError(f"{stored.file}: holds tensor {_show(name)}, which {INDEX} does not list; download both")
        if folder / where[name] != stored.file:
            raise CheckpointError(f"{index}: puts tensor {_show(name)} in {where[name]}, but it is in {stored.file.name}")
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name to file name. `metadata.total_size` is not checked: many a published index counts it otherwise."""
    content = _json_object(index, _whole(index, HEADER_LIMIT_BYTES, CheckpointError), CheckpointError, strict=True)
    where = content.get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(file, str) for file in where.values()):
        raise CheckpointError(f"{index}: weight_map is {_show(where)}, not an object of tensor and file names; {_AGAIN}")
    for file in sorted(set(where.values())):
        # Symlinks may lead out of the folder, as in the hub's cache: those the user made. A name from the net may not.
        plain = file.isprintable() and file.endswith(".safetensors") and not set(file) & {"\\", ":"}
        if not plain or file.startswith("/") or ".." in PurePosixPath(file).parts or str(PurePosixPath(file)) != file:
            raise CheckpointError(f"{index}: names the file {_show(file)}; only *.safetensors within the folder are read")
        if not os.path.lexists(index.parent / file):
            raise CheckpointError(f"{index.parent / file}: is missing, though {INDEX} names it; download it")
    return where


def _shared(one: str, other: str) -> int:
    return sum(len(os.path.commonprefix(pair)) for pair in ((one, other), (one[::-1], other[::-1])))  # noqa: RUF071


def _names(names: list[str]) -> str:
    shown = ", ".join(_show(name) for name in names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
