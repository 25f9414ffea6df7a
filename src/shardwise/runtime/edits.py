"""Penalties, biases and exclusions: changes of a few logits of each row, for all rows at once, each rank to its own ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
import torch

from shardwise.sched.step import Edit

Ids = Sequence[Sequence[int]]
"""Token ids of each row."""

_NOTHING = Edit()


def edited(logits: torch.Tensor, edits: Sequence[Edit | None], own: range) -> torch.Tensor:
    """logits [N, own ids] changed by one edit a row, in the order that `Edit` gives, in float32. Ids of other ranks, and beyond
    the vocabulary, are passed over. The input stays as it is, and comes back where there is nothing to change."""
    if all(edit is None for edit in edits) or not own:
        return logits
    each = [edit or _NOTHING for edit in edits]
    logits = logits.clone(memory_format=torch.contiguous_format)
    seen = [edit.seen if edit.repetition != 1 else () for edit in each]
    penalties = [[edit.repetition] for edit, ids in zip(each, seen, strict=True) for _ in ids]
    _change(logits, own, seen, penalties, lambda x, by: torch.where(x > 0, x / by[0], x * by[0]))
    written = [edit.written if edit.frequency or edit.presence else () for edit in each]
    counts = [[count, edit.frequency, edit.presence] for edit, one in zip(each, written, strict=True) for _, count in one]
    _change(logits, own, [[i for i, _ in one] for one in written], counts, lambda x, by: x - by[1] * by[0] - by[2])
    bias = [[value] for edit in each for _, value in edit.bias]
    _change(logits, own, [[i for i, _ in edit.bias] for edit in each], bias, lambda x, by: x + by[0])
    barred = [edit.barred for edit in each]
    _change(logits, own, barred, [[-np.inf] for ids in barred for _ in ids], lambda x, by: x + by[0])
    _allow(logits, own, each)
    _mask(logits, own, each)
    return logits


def _change(
    logits: torch.Tensor,
    own: range,
    ids: Ids,
    numbers: Sequence[Sequence[float]],
    change: Callable[[torch.Tensor, tuple[torch.Tensor, ...]], torch.Tensor],
) -> None:
    """Sets the logits of `ids` to change(what they are, by), where `by` are the columns of `numbers`, a line for each id."""
    at, held = _places(ids, own)
    if len(at):
        by = torch.from_numpy(np.array(numbers, np.float32)[held]).to(logits.device)
        flat, place = logits.view(-1), torch.from_numpy(at).to(logits.device)
        flat[place] = change(flat[place], by.unbind(-1))


def _allow(logits: torch.Tensor, own: range, each: Sequence[Edit]) -> None:
    """Excludes, in the rows that say what is allowed, all else."""
    rows = [row for row, edit in enumerate(each) if edit.allowed is not None]
    if not rows:
        return
    at, _ = _places([each[row].allowed or () for row in rows], own)
    place = torch.from_numpy(at).to(logits.device)
    before = logits[rows]
    after = torch.full_like(before, -torch.inf)
    after.view(-1)[place] = before.view(-1)[place]
    logits[rows] = after


def _mask(logits: torch.Tensor, own: range, each: Sequence[Edit]) -> None:
    """Excludes, in the rows that have a mask, the ids whose bit in it is not set."""
    if any(edit.mask is not None for edit in each):
        barred = np.zeros((len(each), len(own)), bool)
        for row, edit in enumerate(each):
            if edit.mask is not None:
                np.logical_not(_bits(edit.mask, own), out=barred[row])
        logits.masked_fill_(torch.from_numpy(barred).to(logits.device), -torch.inf)


def _bits(mask: bytes, own: range) -> np.ndarray:
    """A rank's own bits of a mask, as bools."""
    first, last = own.start // 8, -(-own.stop // 8)
    part = np.frombuffer(mask, np.uint8)[first:last]
    found = np.unpackbits(np.pad(part, (0, last - first - len(part))), bitorder="little").view(bool)
    return found[own.start - 8 * first :][: len(own)]


def _places(ids: Ids, own: range) -> tuple[np.ndarray, np.ndarray]:
    """Where in the flat rows those of the ids stand that this rank holds, and which of all the ids these are."""
    rows = np.repeat(np.arange(len(ids)), [len(one) for one in ids])
    flat = np.fromiter(chain.from_iterable(ids), np.int64, len(rows))
    held = (flat >= own.start) & (flat < own.stop)
    return rows[held] * len(own) + flat[held] - own.start, held
