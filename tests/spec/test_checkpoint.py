"""Headers written by the safetensors library are read back; anything bent, short or lying is refused by name."""

from __future__ import annotations

import ctypes
import json
import random
import re
import shlex
from math import prod
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shardwise.errors import CheckpointError, ConfigError
from shardwise.spec.checkpoint import DTYPE_BITS, HEADER_LIMIT_BYTES, open_checkpoint, read_header, read_json

# safetensors' code to the name its writer takes; it reads the two six-bit floats but does not write them.
WRITABLE = {
    "BOOL": "bool", "F4": "float4_e2m1fn_x2", "U8": "uint8", "I8": "int8", "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn", "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "I16": "int16", "U16": "uint16", "F16": "float16", "BF16": "bfloat16",
    "I32": "int32", "U32": "uint32", "F32": "float32", "C64": "complex64", "F64": "float64", "I64": "int64", "U64": "uint64",
}  # fmt: skip

PLAIN: dict[str, Any] = {
    "__metadata__": {"format": "pt"},
    "model.embed.weight": {"dtype": "F32", "shape": [4, 5], "data_offsets": [0, 80]},
    "model.norm.weight": {"dtype": "BF16", "shape": [5], "data_offsets": [80, 90]},
    "empty": {"dtype": "I32", "shape": [0, 7], "data_offsets": [90, 90]},
    "scalar": {"dtype": "U8", "shape": [], "data_offsets": [90, 91]},
}
PLAIN_BYTES = 91


def packed(header: object, data: bytes | int = PLAIN_BYTES) -> bytes:
    """A safetensors file; `header` is bytes as they are or anything JSON, `data` bytes or how many."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + (bytes(data) if isinstance(data, int) else data)


def bent(name: str, **changes: object) -> dict[str, Any]:
    """PLAIN with some fields of one tensor changed."""
    return {**PLAIN, name: {**PLAIN[name], **changes}}


def refused(path: Path, naming: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path) if path.is_dir() else read_header(path)
    message = str(caught.value)
    assert naming in message and "\n" not in message and len(message) < 1000, message
    return message


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that examples overwrite: hypothesis wants no fixture made anew for each."""
    return tmp_path_factory.mktemp("checkpoint") / "box.safetensors"


# Reading what others wrote


TENSORS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30).filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(sorted(WRITABLE)), st.lists(st.integers(0, 6), max_size=4)),
    max_size=12,
)


# Metadata that is an empty dict is left out: for it, safetensors 0.8.0 writes a header that is not JSON.
@settings(max_examples=100, deadline=None)
@given(TENSORS, st.none() | st.dictionaries(st.text('ab\n"\\é€', max_size=5), st.text(max_size=20), min_size=1, max_size=3))
def test_what_the_library_writes_is_read_back(
    box: Path, tensors: dict[str, tuple[str, list[int]]], metadata: dict[str, str] | None
) -> None:
    held, specs = [], {}
    for count, (name, (dtype, shape)) in enumerate(tensors.items()):
        if dtype == "F4":
            shape.append(2)
        nbytes = prod(shape) * DTYPE_BITS[dtype] // 8
        held.append(ctypes.create_string_buffer(bytes([count]) * nbytes, max(nbytes, 1)))
        stored_shape = [*shape[:-1], 1] if dtype == "F4" else shape
        specs[name] = safetensors.TensorSpec(
            dtype=WRITABLE[dtype], shape=stored_shape, data_ptr=ctypes.addressof(held[-1]), data_len=nbytes
        )
    box.write_bytes(safetensors.serialize(specs, metadata))
    content, found = box.read_bytes(), read_header(box)
    assert found.keys() == tensors.keys()
    for count, (name, (dtype, shape)) in enumerate(tensors.items()):
        stored = found[name]
        assert (stored.dtype, stored.shape, stored.file) == (dtype, tuple(shape), box)
        assert content[stored.start : stored.stop] == bytes([count]) * stored.bytes
    assert [stored.start for stored in found.values()] == sorted(stored.start for stored in found.values())


def test_every_dtype_of_the_library_is_known(box: Path) -> None:
    for dtype, bits in DTYPE_BITS.items():
        box.write_bytes(packed({"t": {"dtype": dtype, "shape": [8], "data_offsets": [0, bits]}}, bits))
        ((_, theirs),) = safetensors.deserialize(box.read_bytes())  # type: ignore[no-untyped-call]
        assert theirs["dtype"] == dtype
        assert read_header(box)["t"].bytes == bits


def test_the_plain_file_is_sound(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(packed(PLAIN))
    checkpoint = open_checkpoint(tmp_path)
    assert len(checkpoint) == 4 and checkpoint.bytes == PLAIN_BYTES
    assert checkpoint["scalar"].shape == () and checkpoint["empty"].bytes == 0
    assert checkpoint.files == (tmp_path / "model.safetensors",) and "scalar" in checkpoint
    with pytest.raises(CheckpointError, match=r"no tensor 'model\.norm\.wieght'; nearest: 'model\.norm\.weight'"):
        checkpoint["model.norm.wieght"]


# A single bent file


ENTRY = json.dumps(PLAIN["scalar"])
HUGE = 2**62
BENT: dict[str, object] = {
    "overlap": bent("model.norm.weight", data_offsets=[79, 89]),
    "hole": bent("model.norm.weight", shape=[4], data_offsets=[82, 90]),
    "hole at the start": {"t": {"dtype": "U8", "shape": [90], "data_offsets": [1, 91]}},
    "same bytes twice": {**PLAIN, "again": PLAIN["scalar"]},
    "offsets beyond the file": bent("scalar", shape=[2], data_offsets=[90, 92]),
    "offsets reversed": bent("model.norm.weight", data_offsets=[90, 80]),
    "negative offset": bent("model.embed.weight", data_offsets=[-1, 79]),
    "offsets lie about the shape": bent("model.embed.weight", shape=[4, 4]),
    "three offsets": bent("scalar", data_offsets=[90, 91, 91]),
    "float offset": bent("scalar", data_offsets=[90.0, 91]),
    "unknown dtype": bent("scalar", dtype="Q4"),
    "dtype of another size": bent("model.norm.weight", dtype="F32"),
    "lower-case dtype": bent("scalar", dtype="u8"),
    "dtype not a string": bent("scalar", dtype=["U8"]),
    "negative shape": bent("model.embed.weight", shape=[-4, -5]),
    "true as a count": bent("scalar", shape=[True]),
    "shape not a list": bent("scalar", shape=1),
    "product overflows to the right size": bent("scalar", shape=[2**63, 2, 2**63, 2]),
    "overflow beside a zero": bent("empty", shape=[HUGE, HUGE, 0]),
    "one dimension beyond 64 bits": bent("empty", shape=[0, 2**64]),
    "half a byte": {"t": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}},
    "unknown field": bent("scalar", stride=[1]),
    "missing field": {**PLAIN, "scalar": {"dtype": "U8", "shape": []}},
    "entry not an object": {**PLAIN, "scalar": 3},
    "metadata not strings": {**PLAIN, "__metadata__": {"format": 1}},
    "metadata not an object": {**PLAIN, "__metadata__": None},
    "header a list": b"[]",
    "header empty": b"",
    "header a number": b"12",
    "leading space": b" {}",
    "key twice": f'{{"t": {ENTRY}, "t": {ENTRY}}}'.encode(),
    "key twice, once escaped": f'{{"t": {ENTRY}, "\\u0074": {ENTRY}}}'.encode(),
    "field twice": b'{"t": {"dtype": "U8", "dtype": "U8", "shape": [91], "data_offsets": [0, 91]}}',
    "half a surrogate": b'{"\\ud800": {"dtype": "U8", "shape": [91], "data_offsets": [0, 91]}}',
    "not UTF-8": b'{"\xff": {"dtype": "U8", "shape": [91], "data_offsets": [0, 91]}}',
    "minus zero": b'{"t": {"dtype": "U8", "shape": [91], "data_offsets": [-0, 91]}}',
    "NaN": b'{"t": {"dtype": "U8", "shape": [NaN], "data_offsets": [0, 91]}}',
    "a count of 5000 digits": b'{"t": {"dtype": "U8", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 91]}}',
    "deep lists": b'{"t": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"t": ' * 100_000 + b"1" + b"}" * 100_000,
    "not quite too deep": b'{"t": ' + b"[" * 400 + b"]" * 400 + b"}",
    "two values": b"{}{}",
    "a name of a million letters": {**PLAIN, "x" * 1_000_000: 3},
    "no tensor, but data": {},
}  # fmt: skip


@pytest.mark.parametrize("header", BENT.values(), ids=BENT.keys())
def test_a_bent_header_is_refused(tmp_path: Path, header: object) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(packed(header))
    refused(path, naming=str(path))


def test_errors_name_the_tensor_and_both_numbers(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(packed(bent("model.embed.weight", shape=[4, 4])))
    message = refused(path, naming="'model.embed.weight'")
    assert "needs 64 bytes" in message and "give 80" in message and "download it again" in message
    path.write_bytes(packed(PLAIN)[:-1])
    message = refused(path, naming="'scalar'")
    assert f"ends at byte {path.stat().st_size + 1}" in message and f"only {path.stat().st_size}" in message
    path.write_bytes(packed(PLAIN, PLAIN_BYTES + 3))
    assert "the last 3 belong to no tensor" in refused(path, naming=str(path))


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    whole = packed({**PLAIN, "tail": {"dtype": "U8", "shape": [2000], "data_offsets": [91, 2091]}}, 2091)
    path = tmp_path / "model.safetensors"
    header_end = 8 + int.from_bytes(whole[:8], "little")
    for length in {*range(0, header_end + 1, 5), header_end, *(len(whole) * part // 64 for part in range(64)), len(whole) - 1}:
        path.write_bytes(whole[:length])
        refused(path, naming=str(path))


def test_a_flipped_bit_of_the_header_length_is_refused(tmp_path: Path) -> None:
    whole = packed(json.dumps(PLAIN).encode() + b"      ")
    path = tmp_path / "model.safetensors"
    for bit in range(64):
        length = int.from_bytes(whole[:8], "little") ^ (1 << bit)
        path.write_bytes(length.to_bytes(8, "little") + whole[8:])
        refused(path, naming=str(path))


def test_a_header_beyond_the_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write((HEADER_LIMIT_BYTES + 1).to_bytes(8, "little"))
        file.truncate(HEADER_LIMIT_BYTES + 100)  # sparse: takes no disk
    assert str(HEADER_LIMIT_BYTES) in refused(path, naming=str(path))


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"PK\x03\x04" + bytes(100), "pickle"),
        (b"<!DOCTYPE html><html></html>", "web page"),
    ],
)
def test_what_is_often_mistaken_for_weights_is_recognised(tmp_path: Path, content: bytes, hint: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert hint in refused(path, naming=str(path))


# Never laxer than the library


NUMBER = re.compile(rb"\d+")
ODD = [b"-1", b"-0", b"1.0", b"1e1", b"0e0", b"true", b"null", b'"1"', b"18446744073709551616", b"9223372036854775808", b"00",
       b"NaN", b"[]", b"0", b"1", b"2", b"5", b"80", b"90", b"91", b"+1", b" 7 "]  # fmt: skip
TEXTS = [b'"U8"', b'"F32"', b'"BF16"', b'"F4"', b'"XX"', b'"shape"', b'"\\ud800"', b'"\\udc00\\ud800"', b'"\xff"', b'"a\nb"',
         b'"\\u0000"', b'"__metadata__"', b'"\\x"', b'""']  # fmt: skip
BYTES = [bytes([value]) for value in range(256)]


def mutated(header: bytes, dice: random.Random) -> bytes:
    """One small change: a number, a string, a byte, a swap, or a piece doubled or dropped."""
    kind = dice.randrange(6)
    if kind < 2:
        spot = dice.choice(list((NUMBER if kind == 0 else re.compile(rb'"[^"]*"')).finditer(header)))
        return header[: spot.start()] + dice.choice(ODD if kind == 0 else TEXTS) + header[spot.end() :]
    low, high = sorted(dice.randrange(len(header) + 1) for _ in range(2))
    if kind == 2:
        return header[:low] + dice.choice(BYTES) + header[low:]
    if kind == 3:
        return header[:low] + dice.choice(BYTES) + header[low + 1 :]
    if kind == 4:
        return header[:low] + header[min(high, low + 4) :]
    numbers = list(NUMBER.finditer(header))
    one, other = sorted(dice.sample(numbers, 2), key=lambda match: match.start())
    return header[: one.start()] + other[0] + header[one.end() : other.start()] + one[0] + header[other.end() :]


def test_nothing_is_accepted_that_the_library_refuses(box: Path) -> None:
    dice = random.Random(17)
    seed = json.dumps(PLAIN).encode()
    both = ours_only = neither = 0
    for _ in range(900):
        content = packed(mutated(seed, dice) if dice.random() < 0.8 else mutated(mutated(seed, dice), dice))
        box.write_bytes(content)
        try:
            theirs = dict(safetensors.deserialize(content))  # type: ignore[no-untyped-call]
        except safetensors.SafetensorError:
            theirs = None
        try:
            found = read_header(box)
        except CheckpointError:
            ours_only, neither = ours_only + (theirs is not None), neither + (theirs is None)
            continue
        assert theirs is not None, f"accepted, though the library refuses: {content!r}"
        both += 1
        assert found.keys() == theirs.keys()
        for name, stored in found.items():
            entry = theirs[name]
            assert (stored.dtype, list(stored.shape)) == (entry["dtype"], entry["shape"])
            assert content[stored.start : stored.stop] == bytes(entry["data"])
    assert both > 50 and neither > 500, (both, ours_only, neither)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 300))
def test_noise_is_refused(box: Path, noise: bytes, length: int) -> None:
    content = length.to_bytes(8, "little") + noise
    assume(noise[:length].strip() != b"{}")
    box.write_bytes(content)
    refused(box, naming=str(box))


# A folder


def shard(names: list[str]) -> bytes:
    return packed(
        {name: {"dtype": "U8", "shape": [1], "data_offsets": [at, at + 1]} for at, name in enumerate(names)}, len(names)
    )


def indexed(folder: Path, weight_map: object, **files: list[str]) -> Path:
    """A folder of an index and of the files a, b, ... with the tensors named."""
    for name, tensors in files.items():
        (folder / f"{name}.safetensors").write_bytes(shard(tensors))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return folder


def test_an_index_is_followed(tmp_path: Path) -> None:
    folder = indexed(tmp_path, {"x": "a.safetensors", "y": "b.safetensors", "z": "a.safetensors"}, a=["x", "z"], b=["y"])
    checkpoint = open_checkpoint(folder)
    assert [(name, checkpoint[name].file.name) for name in checkpoint] == [("x", A), ("z", A), ("y", B)]
    (folder / "left-over.safetensors").write_bytes(shard(["x"]))
    assert len(open_checkpoint(folder)) == 3, "a file that the index does not name is not read"


A, B = "a.safetensors", "b.safetensors"
LIES: dict[str, tuple[object, str]] = {
    "missing file": ({"x": A, "y": B, "z": "c.safetensors"}, "c.safetensors"),
    "tensor nowhere": ({"x": A, "y": B, "w": B}, "'w'"),
    "tensor in another file": ({"x": B, "y": B}, "'x'"),
    "tensor not listed": ({"x": A, "y": B} | {"y": A}, "'y'"),
    "file with more than is listed": ({"x": A}, "'more'"),
    "parent folder": ({"x": "../x.safetensors"}, "'../x.safetensors'"),
    "parent folder in the middle": ({"x": "a/../../x.safetensors"}, "'a/../../x.safetensors'"),
    "absolute": ({"x": "/etc/x.safetensors"}, "'/etc/x.safetensors'"),
    "backslashes": ({"x": "..\\x.safetensors"}, "x.safetensors"),
    "drive": ({"x": "C:x.safetensors"}, "'C:x.safetensors'"),
    "line break": ({"x": "a\n.safetensors"}, "'a\\n.safetensors'"),
    "pickle": ({"x": "pytorch_model.bin"}, "'pytorch_model.bin'"),
    "no name": ({"x": ""}, "''"),
    "not a string": ({"x": 3}, "weight_map"),
    "not an object": ([A, B], "weight_map"),
    "empty": ({}, "weight_map"),
}


@pytest.mark.parametrize(("weight_map", "naming"), LIES.values(), ids=LIES.keys())
def test_an_index_that_lies_is_refused(tmp_path: Path, weight_map: object, naming: str) -> None:
    more = ["x", "more"] if naming == "'more'" else ["x"]
    message = refused(indexed(tmp_path, weight_map, a=more, b=["y"]), naming=naming)
    assert str(tmp_path) in message


def test_an_index_must_be_strict_json(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    (tmp_path / A).write_bytes(shard(["x"]))
    for text in [b"", b"[]", b"{", b'{"weight_map": {"x": "a.safetensors", "x": "a.safetensors"}}', b"\xff", b"[" * 99_999]:
        index.write_bytes(text)
        refused(tmp_path, naming=str(index))


def test_any_safetensors_files_are_taken_if_nothing_says_which(tmp_path: Path) -> None:
    (tmp_path / B).write_bytes(shard(["y", "z"]))
    (tmp_path / A).write_bytes(shard(["x"]))
    assert list(open_checkpoint(tmp_path)) == ["x", "y", "z"]
    (tmp_path / "c.safetensors").write_bytes(shard(["w", "y"]))
    assert "b.safetensors" in refused(tmp_path, naming="'y'")


def test_a_missing_part_is_noticed_without_an_index(tmp_path: Path) -> None:
    for part in (1, 3):
        (tmp_path / f"model-0000{part}-of-00003.safetensors").write_bytes(shard([f"t{part}"]))
    refused(tmp_path, naming="model-00002-of-00003.safetensors")
    (tmp_path / "model-00002-of-00003.safetensors").write_bytes(shard(["t2"]))
    assert len(open_checkpoint(tmp_path)) == 3


def test_pickle_is_refused_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    message = refused(tmp_path, naming="pytorch_model.bin")
    assert "can run any code" in message
    command = shlex.split(message[message.index("python -c") :])
    assert len(command) == 3 and f'from_pretrained("{tmp_path}").save_pretrained("{tmp_path}-safetensors")' in command[2]
    compile(command[2], "command", "exec")
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "model.gguf")
    refused(tmp_path, naming="GGUF")
    (tmp_path / "model.gguf").rename(tmp_path / "README.md")
    refused(tmp_path, naming="README.md")


def test_folders_that_are_none(tmp_path: Path) -> None:
    refused_folder = tmp_path / "missing"
    with pytest.raises(CheckpointError, match="no such folder"):
        open_checkpoint(refused_folder)
    file = tmp_path / "model.safetensors"
    file.write_bytes(packed(PLAIN))
    with pytest.raises(CheckpointError, match=f"is a file; give the folder that holds it: {tmp_path}"):
        open_checkpoint(file)
    file.write_bytes(packed({}, 0))
    assert read_header(file) == {}
    refused(tmp_path, naming="no tensor at all")


def test_symlinks_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshots", tmp_path / "blobs"
    snapshot.mkdir()
    blobs.mkdir()
    (blobs / "0123abcd").write_bytes(packed(PLAIN))
    link = snapshot / "model.safetensors"
    link.symlink_to("../blobs/0123abcd")
    assert open_checkpoint(snapshot)["scalar"].file == link
    link.unlink()
    link.symlink_to("../blobs/gone")
    assert "../blobs/gone" in refused(snapshot, naming=str(link))
    link.unlink()
    link.symlink_to(link)
    refused(snapshot, naming=str(link))
    link.unlink()
    link.mkdir()
    assert "not a file" in refused(snapshot, naming=str(link))
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(CheckpointError, match="circle"):
        open_checkpoint(tmp_path / "circle")


# config.json


def test_json_is_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"layers": 2, "limit": [0.0, Infinity]}')
    assert read_json(path) == {"layers": 2, "limit": [0.0, float("inf")]}
    bad = [
        b"",
        b"{",
        b"[]",
        b'{"a": 1, "a": 1}',
        b'{"a": {"b": 1, "b": 2}}',
        b"\xff\xfe",
        b'{"a": \xe9}',
        b"[" * 99_999,
        b"1" * 9999,
    ]
    for content in bad:
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=re.escape(str(path))):
            read_json(path)
    with path.open("wb") as file:
        file.truncate(16 * 2**20 + 1)
    with pytest.raises(ConfigError, match="16777217 bytes"):
        read_json(path)
    path.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        read_json(path)
