"""A rank's weights: one arena, filled from the checkpoint with exactly the ranges that the layout gives this rank.

Files are mapped, not read, and each tensor's pages are let go once copied: loading needs the shard and one tensor. What is
quantised is so block by block on the way, and is never there as a whole in any other form.
"""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import product
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import torch

from shardwise.errors import CheckpointError
from shardwise.nn.kernels.packing import Packed, empty, pack_into
from shardwise.nn.mxfp4 import unpack_mxfp4
from shardwise.runtime.memory import allocated
from shardwise.spec.axes import Weight
from shardwise.spec.binding import DTYPES, Place, Read, reads
from shardwise.spec.boxes import Box
from shardwise.spec.checkpoint import Stored
from shardwise.spec.layout import Layout, Slice

Progress = Callable[[int], None]
"""Called with the number of bytes of the arena that were filled since the last call."""


def arena(layout: Layout, rank: int, device: torch.device) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """One allocation for all weights of `rank`, and the view of each by name. Its contents are not set."""
    block = allocated(layout.arena_bytes(rank), device)
    return block, {part.weight.name: _view(block, part) for part in layout.slices(rank)}


def _view(block: torch.Tensor, part: Slice) -> torch.Tensor:
    dtype: torch.dtype = getattr(torch, part.dtype)
    return block[part.offset : part.offset + part.bytes].view(dtype).view(part.shape)


class Source(Protocol):
    """Where weights come from."""

    def fill(self, tensors: Mapping[str, torch.Tensor], part: Slice, box: Box) -> None:
        """Fills a box of a slice, given in logical ranges, in `tensors`: of what is laid in tiles, whole ones of the slice's. A
        weight that comes with another one's numbers is filled with that one."""
        ...


def fill(tensors: Mapping[str, torch.Tensor], slices: Iterable[Slice], bound: Mapping[str, Place], progress: Progress) -> None:
    """Copies this rank's part of every weight into its place, converting the dtype where the layout says so."""
    with FromCheckpoint(bound) as source:
        _fill_all(tensors, slices, source, progress)


def fill_dummy(
    tensors: Mapping[str, torch.Tensor], slices: Iterable[Slice], progress: Progress, dtype: torch.dtype = torch.float32
) -> None:
    """Random weights without a checkpoint: see `FromNoise`."""
    _fill_all(tensors, slices, FromNoise(dtype), progress)


def _fill_all(tensors: Mapping[str, torch.Tensor], slices: Iterable[Slice], source: Source, progress: Progress) -> None:
    for part in slices:
        if not part.weight.made:
            source.fill(tensors, part, part.ranges)
        progress(part.bytes)


class FromCheckpoint:
    """The tensors of a checkpoint. A context manager: files are open within it."""

    def __init__(self, bound: Mapping[str, Place]) -> None:
        self._bound = bound
        self._opened = ExitStack()
        self._files: dict[Path, mmap.mmap] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._opened.close()
        self._files.clear()

    def fill(self, tensors: Mapping[str, torch.Tensor], part: Slice, box: Box) -> None:
        """See `Source`."""
        place = self._bound[part.weight.name]
        for stored in place.tensors:
            if stored.file not in self._files:
                self._files[stored.file] = self._opened.enter_context(_mapped(stored.file))

        def read_in(target: torch.Tensor, ranges: Box) -> None:
            for read in reads(part.weight, place, ranges):
                _copy(target, self._files, read)

        if part.weight.tile is None:
            read_in(within(tensors[part.weight.name], part, box), box)
        else:
            # As they are stored, if that is in 16 bits: they are widened where they are rounded.
            halves = {stored.dtype for stored in place.tensors} in ({"BF16"}, {"F16"})
            dtype = getattr(torch, DTYPES[place.tensors[0].dtype]) if halves else torch.float32
            _quantise(tensors, part, box, dtype, read_in)


def within(tensor: torch.Tensor, part: Slice, box: Box) -> torch.Tensor:
    """The view of a box of a slice that is not laid in tiles, given in logical ranges; `tensor` is the slice's."""
    pairs = zip(part.weight.stored(box), part.weight.stored(part.ranges), strict=True)
    return tensor[tuple(slice(own.start - whole.start, own.stop - whole.start) for own, whole in pairs)]


def tiles_within(part: Slice, box: Box) -> tuple[slice, ...]:
    """Where the tiles of a box of a slice are, which begin where tiles of the slice do: of its numbers, and of its scales."""
    tile = part.weight.tile
    assert tile is not None
    *above, rows, columns = ((own, whole) for own, whole in zip(box, part.ranges, strict=True))
    first, last = rows[0].start - rows[1].start, rows[0].stop - rows[1].start
    begin = columns[1].start // tile.columns
    return (
        *(slice(own.start - whole.start, own.stop - whole.start) for own, whole in above),
        slice(first // tile.rows, -(-last // tile.rows)),
        slice(columns[0].start // tile.columns - begin, -(-columns[0].stop // tile.columns) - begin),
    )


BLOCK_ELEMENTS = 1 << 20
"""About as many weights are there as plain numbers at a time, before they are quantised."""


def _quantise(
    tensors: Mapping[str, torch.Tensor], part: Slice, box: Box, dtype: torch.dtype, read_in: Callable[[torch.Tensor, Box], None]
) -> None:
    """Fills a box of a quantised weight and its scales, some rows at a time: `read_in` fills a tensor with a box of numbers."""
    *above, rows, columns = box
    tile = part.weight.tile
    if not all(box):
        return
    assert tile is not None and columns.start % tile.columns == 0, f"{part.weight.name}: a cut falls within a group"
    place = tiles_within(part, box)
    numbers, scales = tensors[part.weight.name][place], tensors[f"{part.weight.name}_scale"][place]
    count = max(BLOCK_ELEMENTS // len(columns) // tile.rows, 1) * tile.rows
    for index in product(*(range(len(span)) for span in above)):
        outer = tuple(range(span[i], span[i] + 1) for span, i in zip(above, index, strict=True))
        packed = Packed(tile.kind, numbers[index], scales[index], len(rows), len(columns), tile.columns)
        # What is packed lies in one stretch, and a part of all groups does not.
        apart = packed if packed.weight.is_contiguous() else empty(tile.kind, len(rows), len(columns), tile.columns)
        for first in range(0, len(rows), count):
            some = rows[first : first + count]
            values = torch.empty((*(1 for _ in outer), len(some), len(columns)), dtype=dtype)
            read_in(values, (*outer, some, columns))
            pack_into(values.view(len(some), len(columns)), apart, first)
        if apart is not packed:
            packed.weight.copy_(apart.weight)
            packed.scale.copy_(apart.scale)


def _mapped(file: Path) -> mmap.mmap:
    with file.open("rb") as handle:
        if not file.stat().st_size:  # which cannot be mapped
            raise CheckpointError(f"{file}: is empty; it was cut short since its header was read; download the model again")
        return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)


def _copy(target: torch.Tensor, files: Mapping[Path, mmap.mmap], read: Read) -> None:
    part = target[tuple(slice(r.start, r.stop) for r in read.target)]
    source = _box(files, read.tensor, read.stored)
    if read.scales is not None:
        source = unpack_mxfp4(source, _box(files, read.scales, read.stored), target.dtype)
    if read.transposed:
        source = source.transpose(-1, -2)
    part.copy_(source)
    del source
    for stored in (read.tensor, read.scales):
        if stored is not None:
            first = stored.start // mmap.PAGESIZE * mmap.PAGESIZE
            files[stored.file].madvise(mmap.MADV_DONTNEED, first, stored.stop - first)


def _box(files: Mapping[Path, mmap.mmap], stored: Stored, box: Box) -> torch.Tensor:
    """A box of a stored tensor; axes after those that it names are whole. It lies in the mapped file."""
    dtype: torch.dtype = torch.uint8 if stored.dtype == "F8_E8M0" else getattr(torch, DTYPES[stored.dtype])
    # To read what is not there any more ends the process (SIGBUS). What goes within this one copy still does.
    if (size := files[stored.file].size()) < stored.stop or len(files[stored.file]) < stored.stop:
        raise CheckpointError(
            f"{stored.file}: has {size} bytes, and {stored.name} ends at {stored.stop}: it was cut short since its header was "
            "read; download the model again"
        )
    with warnings.catch_warnings():
        # torch warns that a read-only buffer must not be written to; it never is.
        warnings.simplefilter("ignore", UserWarning)
        whole = torch.frombuffer(files[stored.file], dtype=dtype, count=prod(stored.shape), offset=stored.start)
    return whole.view(stored.shape)[tuple(slice(r.start, r.stop, r.step) for r in box)]


class FromNoise:
    """Random weights without a checkpoint, the same at every degree: a function of a weight's name and the logical place.

    Norms become ones and biases zeros; matrices are uniform with variance 1 / inputs, as a fresh model's would be. What is
    quantised was of `dtype` before, as it would be where nothing is.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._noise = torch.rand(NOISE, generator=torch.Generator().manual_seed(0)) * 2 - 1
        self._scaled: dict[tuple[int, torch.dtype], torch.Tensor] = {}

    def fill(self, tensors: Mapping[str, torch.Tensor], part: Slice, box: Box) -> None:
        """See `Source`."""
        weight, columns = part.weight, len(box[-1])
        if weight.tile is not None:
            windows = self._windows(weight, columns, self._dtype)
            _quantise(tensors, part, box, self._dtype, partial(_noise, weight=weight, windows=windows))
            return
        target = within(tensors[weight.name], part, box)
        if len(part.shape) == 1 or weight.name.endswith("bias"):
            target.fill_(1.0 if weight.name.endswith("weight") else 0.0)
        elif target.numel():
            _noise(target, box, weight, self._windows(weight, columns, target.dtype))

    def _windows(self, weight: Weight, columns: int, dtype: torch.dtype) -> torch.Tensor:
        """[NOISE, columns] of overlapping rows, of the variance that the weight's should have."""
        width = weight.axes[-1].size
        if (width, dtype) not in self._scaled:
            scaled = (self._noise * (3.0 / width) ** 0.5).to(dtype)
            self._scaled = {(width, dtype): torch.cat((scaled, scaled[:width]))}  # some MiB: not of several widths at once
        return self._scaled[width, dtype].unfold(0, columns, 1)


NOISE = 1_048_583
"""A prime, so that rows of any length start at ever new places."""


def _noise(target: torch.Tensor, ranges: Box, weight: Weight, windows: torch.Tensor) -> None:
    """Each row of the weight is a window of noise that starts at a place of its own. Rows of a stack count on."""
    *above, columns = ranges
    width = weight.axes[-1].size
    salt = int.from_bytes(weight.name.encode(), "little") % NOISE
    rows = torch.zeros(1, dtype=torch.int64)
    for own, axis in zip(above, weight.axes, strict=False):
        rows = (rows[:, None] * axis.size + torch.arange(own.start, own.stop)).flatten()
    starts = (salt + rows * 7919 * width) % NOISE + columns.start
    if target.device.type == "cpu" and target.is_contiguous():
        torch.index_select(windows, 0, starts, out=target.view(-1, len(columns)))
    else:
        target.copy_(windows.index_select(0, starts).view(target.shape))
