"""A model's weights matched with a checkpoint's tensors: every weight found, every tensor used, every shape right.

Checked in full before anything is loaded. It also says which box of a stored tensor fills which part of a rank's slice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TypeVar

from shardwise.errors import CheckpointError
from shardwise.spec.axes import Packed, Source, Weight
from shardwise.spec.boxes import Box
from shardwise.spec.checkpoint import Checkpoint, Stored
from shardwise.spec.model import Model, model_weights

# safetensors' names of the dtypes that are read, and torch's.
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
T = TypeVar("T")
FLOATS = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a weight stands in a checkpoint: in which way, and in which tensors. One as a rule; one for each index of its first
    axis where they are stored apart; blocks and scales where it is packed."""

    source: Source
    tensors: tuple[Stored, ...]


@dataclass(frozen=True, slots=True)
class Read:
    """One copy: box `stored` of `tensor` fills box `target` of a slice. `transposed`: its last two axes are swapped on the way.

    With `scales`, `tensor` holds blocks: `stored` is a box of groups, the same in both, and they are unpacked on the way.
    """

    tensor: Stored
    stored: Box
    target: Box
    transposed: bool = False
    scales: Stored | None = None


def bind(model: Model, checkpoint: Checkpoint) -> Mapping[str, Place]:
    """The place of each weight, by the weight's name. CheckpointError where weights and tensors do not match exactly."""
    prefix = _prefix(model, checkpoint)
    bound: dict[str, Place] = {}
    users: dict[str, list[Weight]] = defaultdict(list)
    missing: list[str] = []
    for weight in _stored(model):
        # Where there is a prefix, the head still stands outside of it: transformers' GPT-2 is "transformer." and a head.
        spelled = [(source, [p + n for n in names(weight, source)]) for source in _sources(weight) for p in (prefix, "")]
        source, found = next((pair for pair in spelled if pair[1][0] in checkpoint), spelled[0])
        missing += [name for name in found if name not in checkpoint]
        if missing:
            continue
        place = bound[weight.name] = Place(source, tuple(checkpoint[name] for name in found))
        for name in found:
            users[name].append(weight)
        _check(weight, place)
    if missing:
        raise _missing(missing, checkpoint)
    _check_covered(bound, users)
    spare = {p + alias for weight in _stored(model) for alias in weight.aliases for p in (prefix, "")}
    _check_unread(model, [n for n in checkpoint if n not in users and n not in spare], checkpoint)
    return bound


def _stored(model: Model) -> Iterator[Weight]:
    """Every weight that a checkpoint has; what is made while they are loaded is not among them."""
    return (weight for weight in model_weights(model) if not weight.made)


def names(weight: Weight, source: Source) -> tuple[str, ...]:
    """The tensors of a weight that is stored as `source` says."""
    if source.packed:
        return source.tensor + source.packed.blocks, source.tensor + source.packed.scales
    if "*" in source.tensor:
        return tuple(source.tensor.replace("*", str(i)) for i in range(weight.axes[0].size))
    return (source.tensor,)


def reads(weight: Weight, place: Place, box: Box) -> Iterator[Read]:
    """The copies that fill this rank's slice of `weight`, which holds the logical ranges `box`."""
    source, whole = place.source, weight.stored(box)
    if not all(whole):
        return
    first = tuple(range(len(r)) for r in whole)
    if "*" in source.tensor and not source.packed:
        for i, index in enumerate(box[0]):
            target = (range(i, i + 1), *first[1:])
            yield Read(place.tensors[index], _turn(whole[1:], source.transposed), target, source.transposed)
        return
    per = weight.per[source.axis] if weight.per else 1
    pieces = source.fused.pieces(box[source.axis]) if source.fused else (box[source.axis],)
    filled = 0
    for piece in pieces:
        rows = piece if per == 1 else range(piece.start // per, -(-piece.stop // per))
        stored = (*whole[: source.axis], rows, *whole[source.axis + 1 :])
        target = (*first[: source.axis], range(filled, filled + len(rows)), *first[source.axis + 1 :])
        filled += len(rows)
        if source.packed:
            yield from _unpacked(place, source.packed, stored, target)
        else:
            yield Read(place.tensors[0], _turn(stored, source.transposed), target, source.transposed)


def _unpacked(place: Place, packed: Packed, stored: Box, target: Box) -> Iterator[Read]:
    """One read for each index of the first axis: what is unpacked at once is small. Cuts fall between groups."""
    blocks, scales = place.tensors
    columns = stored[-1]
    assert columns.start % packed.size == 0 and columns.stop % packed.size == 0, "the grain is the packed group"
    groups = range(columns.start // packed.size, columns.stop // packed.size)
    for i, index in enumerate(stored[0]):
        part = (range(index, index + 1), *stored[1:-1], groups)
        yield Read(blocks, part, (range(i, i + 1), *target[1:]), scales=scales)


def _turn(box: tuple[T, ...], transposed: bool) -> tuple[T, ...]:
    return (*box[:-2], box[-1], box[-2]) if transposed else box


def _sources(weight: Weight) -> tuple[Source, ...]:
    """In which ways the weight may be stored, the likeliest first."""
    usual = weight.source or Source(weight.name)
    others = tuple(Source(alias) for alias in weight.aliases)
    return (usual, *others, weight.also) if weight.also else (usual, *others)


def _prefix(model: Model, checkpoint: Checkpoint) -> str:
    """The prefix that this checkpoint puts before every name, or nothing."""
    if model.prefix and any(name.startswith(model.prefix) for name in checkpoint):
        return model.prefix
    return ""


def _check(weight: Weight, place: Place) -> None:
    """Shapes and dtypes of a weight's tensors against what the config makes of them."""
    source = place.source
    expected = _turn(weight.shape, source.transposed)
    if source.packed:
        _check_packed(expected, place, source.packed)
        return
    apart = "*" in source.tensor
    axis = _fused_axis(weight, source)
    for stored in place.tensors:
        _check_shape(stored, expected[1:] if apart else expected, axis)
        dtype = DTYPES.get(stored.dtype)
        # A wider or narrower float is converted, or quantised; companions are read by code that counts on theirs.
        exact = weight.dtype if weight.companion or (weight.dtype not in FLOATS and not weight.tile) else None
        if dtype is None or (dtype != exact if exact else dtype not in FLOATS):
            raise CheckpointError(
                f"{stored.file}: {stored.name} is stored as {stored.dtype}, but this model needs "
                f"{exact or 'a floating-point dtype (F32, BF16, F16)'} there; is quantization_config missing from config.json?"
            )


def _check_packed(expected: tuple[int, ...], place: Place, packed: Packed) -> None:
    blocks, scales = place.tensors
    groups = (*expected[:-1], -(-expected[-1] // packed.size))
    axis = place.source.axis if place.source.fused else None
    _check_shape(blocks, (*groups, packed.size // packed.per_byte), axis)
    _check_shape(scales, groups, axis)
    for stored in place.tensors:
        if stored.dtype not in ("U8", "F8_E8M0"):
            raise CheckpointError(
                f"{stored.file}: {stored.name} is stored as {stored.dtype}, but {packed.format} is made of bytes (U8)"
            )


def _check_shape(stored: Stored, expected: tuple[int, ...], fused: int | None) -> None:
    """All axes but the one along which several weights share the tensor."""
    same = len(expected) == len(stored.shape) and all(
        i == fused or a == b for i, (a, b) in enumerate(zip(expected, stored.shape, strict=True))
    )
    if not same:
        raise CheckpointError(
            f"{stored.file}: {stored.name} has shape {list(stored.shape)}, but config.json makes it {list(expected)}; "
            "the config and the weights are not of the same model"
        )


def _fused_axis(weight: Weight, source: Source) -> int | None:
    """The stored axis along which several weights share a tensor."""
    if source.fused is None:
        return None
    axes = _turn(tuple(range(len(weight.axes))), source.transposed)
    return axes.index(source.axis)


def _check_covered(bound: Mapping[str, Place], users: Mapping[str, list[Weight]]) -> None:
    """The weights that share a tensor must make up all of it: a wider one would be read in the wrong places."""
    tensors = {stored.name: (place, stored) for place in bound.values() for stored in place.tensors}
    for place, stored in tensors.values():
        weights = users[stored.name]
        held = sum(prod(weight.shape) for weight in weights) // (1 if place.source.packed else len(place.tensors))
        there = prod(stored.shape)
        if place.source.packed:
            packed = place.source.packed
            there *= packed.per_byte if stored == place.tensors[0] else packed.size
        if held != there:
            raise CheckpointError(
                f"{stored.file}: {stored.name} has {there} elements, but config.json makes it {held} "
                f"({', '.join(weight.name for weight in weights)}); the config and the weights are not of the same model"
            )


def _missing(names: list[str], checkpoint: Checkpoint) -> CheckpointError:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return CheckpointError(
        f"{checkpoint.folder}: the checkpoint lacks {shown}; config.json asks for {'it' if len(names) == 1 else 'them'}. "
        "A file is missing, or the config is of another model"
    )


def _check_unread(model: Model, names: list[str], checkpoint: Checkpoint) -> None:
    """A tensor that nothing reads means that the model would not be the one that was trained."""
    unread = [name for name in names if not (name.endswith(model.ignored) or name.startswith(model.foreign))]
    if unread:
        shown = ", ".join(unread[:3]) + (f" and {len(unread) - 3} more" if len(unread) > 3 else "")
        raise CheckpointError(
            f"{checkpoint.folder}: nothing reads {shown}; config.json ({model.architecture}, {model.layers} layers) has no "
            f"place for {'it' if len(unread) == 1 else 'them'}, so the config and the weights are not of the same model"
        )
