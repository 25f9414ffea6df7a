"""What every collective backend offers, and what one call is worth in bytes. Imports no torch at run time.

A group never changes: when a rank is lost, or the cut moves, the ranks close it and build a new one with a greater
`epoch`. There is no `reform` method, for the size and the members may differ and a broken group has nothing to keep;
`epoch` fences the two apart, so that a message of the old group can never be taken for one of the new.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DEADLINE_S = 60.0  # what a backend's `deadline_s` is unless told: longer than any step, shorter than patience


class Comm(Protocol):
    """A rank's end of one group. The same calls, in the same order, with the same `site`, are made on every rank.

    Every method leaves its input as it was and returns a new tensor, or `out` where one is given (same shape, dtype and
    device as the result; it may be `x` itself). In a group of one the result may share memory with `x`. A result has
    the dtype of the input, unless a sum is asked for as another, and a sum has the same bits on every rank. Inputs may be
    non-contiguous or empty. No backend differentiates: in a group of two or more, an input that wants a gradient is refused.

    `site` says where in the model the call stands ("mlp_down", see `spec.traffic.SITES`); it is in every error and record.

    Errors: `ValueError` where the arguments alone are wrong, before anything is sent; `CommError` where the group is: a
    peer that died, left, disagrees, or did not come within the deadline. After a `CommError` the group is broken, and
    every later call raises at once.
    """

    @property
    def rank(self) -> int:
        """This rank's place in the group, 0 <= rank < size."""

    @property
    def size(self) -> int:
        """How many ranks the group has."""

    @property
    def epoch(self) -> int:
        """Which forming of the group this is; a peer of another epoch is an error."""

    def all_reduce(self, x: Tensor, *, site: str, out: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """The sum of every rank's `x`, in its shape. Booleans and 8-bit floats are not summed. A sum of float64 may be asked
        for as a narrower float `dtype`, which it is converted to in the end, as torch does."""

    def all_gather(self, x: Tensor, ranges: Sequence[range], *, dim: int = -1, site: str, out: Tensor | None = None) -> Tensor:
        """Joins the parts of `dim`: rank r holds `ranges[r]` of it. Ranges are contiguous from 0 and may be empty."""

    def reduce_scatter(
        self, x: Tensor, ranges: Sequence[range], *, dim: int = -1, site: str, out: Tensor | None = None
    ) -> Tensor:
        """The sum of every rank's whole `x`, of which rank r receives `ranges[r]` of `dim`."""

    def all_to_all(
        self,
        x: Tensor,
        send_counts: Sequence[int],
        recv_counts: Sequence[int],
        *,
        site: str,
        out: Tensor | None = None,
    ) -> Tensor:
        """Rows of dim 0, in rank order: the next `send_counts[r]` go to rank r, `recv_counts[r]` come from it."""

    def broadcast(self, x: Tensor, root: int, *, site: str, out: Tensor | None = None) -> Tensor:
        """The `x` of rank `root`; elsewhere `x` states only shape and dtype."""

    def send(self, x: Tensor, to: int, *, site: str) -> None:
        """Sends `x` to another rank. May wait for its `recv`: two ranks that both send first can stand still."""

    def recv(self, out: Tensor, source: int, *, site: str) -> Tensor:
        """Fills `out` with what rank `source` sends next from the same site, and returns it."""

    def barrier(self, *, site: str = "barrier") -> None:
        """Returns when every rank has called it."""

    def enter(self, x: Tensor, *, site: str) -> Tensor:
        """Marks where a replicated tensor enters a cut region: `x` itself here, a sum of its gradients in training."""

    def close(self) -> None:
        """Leaves the group and never waits. Peers that still need this rank fail at once. Twice is once."""
