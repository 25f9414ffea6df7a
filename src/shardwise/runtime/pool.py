"""Hidden states of whole items to one vector each: what a step makes for those that ask for no token.

The states after the last reduce are the same on every rank, so only the lead rank does this, and nothing travels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from shardwise.runtime.kinds import pieces
from shardwise.sched.step import Item

NOT_FINITE = "the model's hidden states are not finite numbers"

Final = Callable[[torch.Tensor], torch.Tensor]
"""Hidden states [rows, hidden] to the same after the last norm."""


def pool(items: Sequence[Item], hidden: torch.Tensor, final: Final) -> torch.Tensor | None:
    """hidden [T, hidden] of a step to float32 [items that pool, hidden], in their order, on the same device; None where there
    are none. Sums are taken in double precision, a piece of rows at a time, so that no chunk is held twice."""
    found, start = [], 0
    for item in items:
        stop = start + item.count
        if item.pool == "last":
            found.append(final(hidden[stop - 1 : stop])[0].float())
        elif item.pool == "mean":
            found.append(_total(hidden[start:stop], final))
        start = stop
    return torch.stack(found) if found else None


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
