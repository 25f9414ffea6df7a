"""Hidden states of whole items to one vector each: what a step makes for those that ask for no token.

The states after the last reduce are the same on every rank, so only the lead rank does this, and nothing travels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import torch

from shardwise.runtime.kinds import pieces
from shardwise.sched.step import Item

NOT_FINITE = "the model's hidden states are not finite numbers"

Final = Callable[[torch.Tensor], torch.Tensor]
"""Hidden states [rows, hidden] to the same after the last norm."""


def pool(items: Sequence[Item], hidden: torch.Tensor, final: Final) -> torch.Tensor | None:
    """hidden [T, hidden] of a step to float32 [items that pool, hidden], in their order, on the same device; None where there
    are none. Sums are taken in double precision, a piece of rows at a time, so that no chunk is held twice."""
    stops = accumulate(item.count for item in items)
    asked = [(item, stop) for item, stop in zip(items, stops, strict=True) if item.pool]
    if not asked:
        return None
    found = hidden.new_empty(len(asked), hidden.shape[1], dtype=torch.float32)
    lasts = [place for place, (item, _) in enumerate(asked) if item.pool == "last"]
    for piece in pieces(len(lasts)):
        part = lasts[piece.start : piece.stop]
        # Which rows, and where they go, as one copy to the device.
        both = torch.tensor([[asked[place][1] - 1 for place in part], part]).to(hidden.device, non_blocking=True)
        found[both[1]] = final(hidden[both[0]]).float()
    for place, (item, stop) in enumerate(asked):
        if item.pool == "mean":
            found[place] = _total(hidden[stop - item.count : stop], final)
    return found


def _total(rows: torch.Tensor, final: Final) -> torch.Tensor:
    total = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
    for piece in pieces(len(rows)):
        total += final(rows[piece.start : piece.stop]).double().sum(0)
    return total.float()


def told(pooled: torch.Tensor | None) -> Iterator[tuple[bytes, str | None]]:
    """On the host: each vector in little-endian order, or why there is none."""
    if pooled is not None:
        for row in pooled.cpu():
            sound = bool(torch.isfinite(row).all())
            yield (row.numpy().astype("<f4", copy=False).tobytes(), None) if sound else (b"", NOT_FINITE)
