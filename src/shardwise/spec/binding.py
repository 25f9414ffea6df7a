"""A model's weights matched with a checkpoint's tensors: every weight found, every tensor used, every shape right.

Checked in full before anything is loaded. It also says which box of a stored tensor fills which part of a rank's slice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from shardwise.errors import CheckpointError
from shardwise.spec.axes import Weight
from shardwise.spec.blocks import Model, model_weights
from shardwise.spec.boxes import Box
from shardwise.spec.checkpoint import Checkpoint, Stored

# safetensors' names of the dtypes that are read, and torch's.
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
FLOATS = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Read:
    """One copy: box `stored` of a tensor fills box `target` of a slice. `transposed`: its two axes are swapped on the way."""

    stored: Box
    target: Box
    transposed: bool


def bind(model: Model, checkpoint: Checkpoint) -> Mapping[str, Stored]:
    """The stored tensor of each weight, by the weight's name. CheckpointError where the two do not match exactly."""
    prefix = _prefix(model, checkpoint)
    bound: dict[str, Stored] = {}
    users: dict[str, list[Weight]] = defaultdict(list)
    missing: list[str] = []
    for weight in model_weights(model):
        # Where there is a prefix, the head still stands outside of it: transformers' GPT-2 is "transformer." and a head.
        name = next((p + n for n in _names(weight) for p in (prefix, "") if p + n in checkpoint), None)
        if name is None:
            missing.append(prefix + _names(weight)[0])
            continue
        stored = bound[weight.name] = checkpoint[name]
        users[stored.name].append(weight)
        _check(weight, stored)
    if missing:
        raise _missing(missing, checkpoint)
    for name, weights in users.items():
        _check_covered(checkpoint[name], weights)
    spare = {p + alias for weight in model_weights(model) for alias in weight.aliases for p in (prefix, "")}
    _check_unread(model, [n for n in checkpoint if n not in users and n not in spare], checkpoint)
    return bound


def reads(weight: Weight, box: Box) -> Iterator[Read]:
    """The copies that fill this rank's slice of `weight`, which holds the logical ranges `box`."""
    whole = weight.stored(box)
    transposed = bool(weight.source and weight.source.transposed)
    fused = weight.source.fused if weight.source else None
    if not all(whole):
        return
    if fused is None:
        yield Read(_turn(whole, transposed), tuple(range(len(r)) for r in whole), transposed)
        return
    axis = weight.source.axis if weight.source else 0
    per = weight.per[axis] if weight.per else 1
    before, after = tuple(range(len(r)) for r in whole[:axis]), tuple(range(len(r)) for r in whole[axis + 1 :])
    filled = 0
    for piece in fused.pieces(box[axis]):
        rows = range(piece.start // per, -(-piece.stop // per))
        target = (*before, range(filled, filled + len(rows)), *after)
        yield Read(_turn((*whole[:axis], rows, *whole[axis + 1 :]), transposed), target, transposed)
        filled += len(rows)


def _turn(box: Box, transposed: bool) -> Box:
    return box[::-1] if transposed else box


def _names(weight: Weight) -> tuple[str, ...]:
    """Where the weight may be stored, the likeliest first."""
    return (weight.source.tensor if weight.source else weight.name, *weight.aliases)


def _prefix(model: Model, checkpoint: Checkpoint) -> str:
    """The prefix that this checkpoint puts before every name, or nothing."""
    if model.prefix and any(name.startswith(model.prefix) for name in checkpoint):
        return model.prefix
    return ""


def _check(weight: Weight, stored: Stored) -> None:
    """Shape and dtype of one tensor against what the config makes of it."""
    expected = weight.shape[::-1] if weight.source and weight.source.transposed else weight.shape
    axis = _fused_axis(weight)
    same = len(expected) == len(stored.shape) and all(
        i == axis or a == b for i, (a, b) in enumerate(zip(expected, stored.shape, strict=True))
    )
    if not same:
        raise CheckpointError(
            f"{stored.file}: {stored.name} has shape {list(stored.shape)}, but config.json makes it {list(expected)}; "
            "the config and the weights are not of the same model"
        )
    dtype = DTYPES.get(stored.dtype)
    wanted = weight.dtype
    if dtype is None or (dtype != wanted if wanted else dtype not in FLOATS):
        raise CheckpointError(
            f"{stored.file}: {stored.name} is stored as {stored.dtype}, but this model needs "
            f"{wanted or 'a floating-point dtype (F32, BF16, F16)'} there; is quantization_config missing from config.json?"
        )


def _fused_axis(weight: Weight) -> int | None:
    """The stored axis along which several weights share a tensor."""
    if weight.source is None or weight.source.fused is None:
        return None
    last = len(weight.axes) - 1
    return last - weight.source.axis if weight.source.transposed else weight.source.axis


def _check_covered(stored: Stored, weights: list[Weight]) -> None:
    """The weights that share a tensor must make up all of it: a wider one would be read in the wrong places."""
    held = sum(prod(weight.shape) for weight in weights)
    if held != prod(stored.shape):
        raise CheckpointError(
            f"{stored.file}: {stored.name} has {prod(stored.shape)} elements, but config.json makes it {held} "
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
