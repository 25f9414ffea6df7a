"""The protocol's methods for every backend that carries out one checked `Ask` at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shardwise.comm import asks
from shardwise.comm.asks import Ask


class Asking:
    """Turns each method of the protocol into an `Ask`; a backend adds `carry_out` and `close`."""

    def __init__(self, rank: int, size: int, epoch: int) -> None:
        if not 0 <= rank < size:
            raise ValueError(f"rank {rank} is not a rank of a group of {size}")
        self.rank = rank
        self.size = size
        self.epoch = epoch

    def carry_out(self, ask: Ask) -> Tensor:
        """The result of one call: a contiguous tensor of shape `ask.result`, on the device of `ask.x`. Of a sum that is to be
        rounded, `Asking` does it unless it is done."""
        raise NotImplementedError

    def close(self) -> None:
        """Leaves the group."""
        raise NotImplementedError

    def all_reduce(self, x: Tensor, *, site: str, out: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """See `Comm.all_reduce`."""
        return self._ask(asks.all_reduce(self, x, site, out, dtype))

    def all_gather(self, x: Tensor, ranges: Sequence[range], *, dim: int = -1, site: str, out: Tensor | None = None) -> Tensor:
        """See `Comm.all_gather`."""
        return self._ask(asks.all_gather(self, x, ranges, dim, site, out))

    def reduce_scatter(
        self, x: Tensor, ranges: Sequence[range], *, dim: int = -1, site: str, out: Tensor | None = None
    ) -> Tensor:
        """See `Comm.reduce_scatter`."""
        return self._ask(asks.reduce_scatter(self, x, ranges, dim, site, out))

    def all_to_all(
        self,
        x: Tensor,
        send_counts: Sequence[int],
        recv_counts: Sequence[int],
        *,
        site: str,
        out: Tensor | None = None,
    ) -> Tensor:
        """See `Comm.all_to_all`."""
        return self._ask(asks.all_to_all(self, x, send_counts, recv_counts, site, out))

    def broadcast(self, x: Tensor, root: int, *, site: str, out: Tensor | None = None) -> Tensor:
        """See `Comm.broadcast`."""
        return self._ask(asks.broadcast(self, x, root, site, out))

    def send(self, x: Tensor, to: int, *, site: str) -> None:
        """See `Comm.send`."""
        self.carry_out(asks.message(self, "send", x, to, site))

    def recv(self, out: Tensor, source: int, *, site: str) -> Tensor:
        """See `Comm.recv`."""
        return self._ask(asks.message(self, "recv", out, source, site))

    def barrier(self, *, site: str = "barrier") -> None:
        """See `Comm.barrier`."""
        self.carry_out(asks.barrier(self, site))

    def enter(self, x: Tensor, *, site: str) -> Tensor:
        """`x` itself."""
        return x

    def _ask(self, ask: Ask) -> Tensor:
        result = self.carry_out(ask)
        result = result if ask.dtype is None else result.to(ask.dtype)
        return result if ask.out is None else ask.out.copy_(result)
