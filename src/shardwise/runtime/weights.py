"""A rank's weights, whichever place in a group it has: cut anew, it keeps what it holds and reads only what it lacks.

What comes out is to the last bit what a fresh rank would have loaded. Knows no group and no step.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path

import torch

from shardwise.runtime import load
from shardwise.runtime.load import FromCheckpoint, FromNoise, Progress, Source, tiles_within, within
from shardwise.spec.binding import bind
from shardwise.spec.boxes import Box, intersect, subtract
from shardwise.spec.checkpoint import open_checkpoint
from shardwise.spec.layout import Layout, Slice

Origin = Callable[[], AbstractContextManager[Source]]
"""Opens what weights are read from, when some are."""


def origin_of(layout: Layout, folder: Path | None) -> Origin:
    """The checkpoint in a folder; random weights without one."""

    def opened() -> AbstractContextManager[Source]:
        if folder is None:
            return nullcontext(FromNoise(getattr(torch, layout.dtype)))
        return FromCheckpoint(bind(layout.model, open_checkpoint(folder)))

    return opened


class Weights:
    """The weights of one rank of a layout, all in one arena. `tensors` are the views of it by name."""

    def __init__(self, layout: Layout, rank: int, device: torch.device, origin: Origin, progress: Progress) -> None:
        self.slices = layout.slices(rank)
        self.arena, self.tensors = load.arena(layout, rank, device)
        self.kept_bytes = 0
        """Of all bytes those that were there before the last cut."""
        with origin() as source:
            for part in self.slices:
                if not part.weight.made:
                    source.fill(self.tensors, part, part.ranges)
                progress(part.bytes)

    def recut(self, layout: Layout, rank: int, device: torch.device, origin: Origin, progress: Progress) -> None:
        """Turns them into the weights of `rank` of another layout of the same model. On a CPU little more memory is needed than
        the greater of both takes: that of each old weight is given back as soon as it was copied.

        Nobody else may still use the old tensors. What it leaves where it raises is of no use any more.
        """
        slices = layout.slices(rank)
        if slices == self.slices and device == self.arena.device:
            self.kept_bytes = sum(part.bytes for part in slices)
            progress(self.kept_bytes)
            return
        olds = {part.weight.name: part for part in self.slices}
        old_arena, old = self.arena, self.tensors
        if device.type != "cpu":
            # Where memory is given back as a whole only: it waits elsewhere.
            old_arena, old = _elsewhere(self.slices, old)
        del self.arena, self.tensors
        self.arena, self.tensors = load.arena(layout, rank, device)
        self.slices, self.kept_bytes = slices, 0
        with ExitStack() as opened:
            source: Source | None = None
            for part in slices:
                before = olds.get(part.weight.name)
                box = None if before is None else kept(before, part)
                if before is not None and box is not None:
                    self.kept_bytes += _copy(self.tensors, part, old, before, box)
                missing = [part.ranges] if box is None else subtract(part.ranges, box)
                if missing and not part.weight.made:
                    source = source or opened.enter_context(origin())
                    for lacking in missing:
                        source.fill(self.tensors, part, lacking)
                if before is not None:
                    _give_back(old_arena, before.offset + before.bytes)
                progress(part.bytes)


def kept(old: Slice, new: Slice) -> Box | None:
    """The box of `new` that can be copied from `old`, in logical ranges; None where that is nothing. Of what is laid in tiles:
    whole tiles, where those of both begin at the same elements."""
    common = intersect(old.ranges, new.ranges)
    if not all(common) or old.dtype != new.dtype:
        return None
    tile = new.weight.tile
    if tile is None:
        # Several elements of a stored one may belong to different boxes.
        whole = all(per == 1 for per in new.weight.per) or old.ranges == new.ranges
        return common if whole else None
    rows = _whole_tiles(old.ranges[-2], new.ranges[-2], tile.rows)
    columns = _whole_tiles(old.ranges[-1], new.ranges[-1], tile.columns)
    return (*common[:-2], rows, columns) if rows and columns else None


def _whole_tiles(old: range, new: range, size: int) -> range:
    """The elements of `new` in tiles of it that are tiles of `old` as well, tile by tile and to their padding."""
    if (old.start - new.start) % size:
        return range(0)
    start, stop = max(old.start, new.start), min(old.stop, new.stop)
    # The last one is padded: a tile of the other only where that is padded at the same place.
    if old.stop != new.stop:
        stop -= (stop - new.start) % size
    return range(start, max(start, stop))


def _copy(tensors: Mapping[str, torch.Tensor], part: Slice, old: Mapping[str, torch.Tensor], before: Slice, box: Box) -> int:
    """Copies a box of one weight from the old tensors; how many bytes that were."""
    name = part.weight.name
    if part.weight.tile is None:
        target, source = within(tensors[name], part, box), within(old[name], before, box)
    else:
        target, source = tensors[name][tiles_within(part, box)], old[name][tiles_within(before, box)]
    target.copy_(source)
    return target.nbytes


def _elsewhere(slices: tuple[Slice, ...], tensors: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Copies of the tensors in the host's memory, and an arena of nothing."""
    return torch.empty(0, dtype=torch.uint8), {part.weight.name: tensors[part.weight.name].cpu() for part in slices}


_MADV_DONTNEED = 4


def _give_back(arena: torch.Tensor, end: int) -> None:
    """Gives the whole pages of an arena's first `end` bytes back to the system: nobody reads them again."""
    begin = -(-arena.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (arena.data_ptr() + min(end, arena.nbytes)) // mmap.PAGESIZE * mmap.PAGESIZE - begin
    if length > 0:
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        madvise(begin, length, _MADV_DONTNEED)
