"""A group of one rank, and a recorder that any backend can be put into."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shardwise.comm import asks
from shardwise.comm.asking import Asking
from shardwise.comm.asks import Ask
from shardwise.comm.protocol import Comm
from shardwise.spec.traffic import Call


class Solo(Asking):
    """The group of one: every call is checked as in any group, and the result is the input itself."""

    def __init__(self, *, epoch: int = 0) -> None:
        super().__init__(0, 1, epoch)
        self._closed = False

    def carry_out(self, ask: Ask) -> Tensor:
        """The input, which is the sum, the whole and the only part at once."""
        if self._closed:
            raise asks.failure(ask, "this rank has left the group", culprit=0)
        return ask.x

    def close(self) -> None:
        """Later calls raise."""
        self._closed = True


class Recording:
    """Puts a list of `Call`s beside any backend: one for each call that succeeded, in order. Adds no communication."""

    def __init__(self, inner: Comm) -> None:
        self.inner = inner
        self.calls: list[Call] = []

    @property
    def rank(self) -> int:
        """The inner rank."""
        return self.inner.rank

    @property
    def size(self) -> int:
        """The inner size."""
        return self.inner.size

    @property
    def epoch(self) -> int:
        """The inner epoch."""
        return self.inner.epoch

    def all_reduce(self, x: Tensor, *, site: str, out: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Recorded with the shape and bytes of `x`."""
        ask = asks.all_reduce(self, x, site, out, dtype)
        return self._note(ask, self.inner.all_reduce(x, site=site, out=out, dtype=dtype))

    def all_gather(self, x: Tensor, ranges: Sequence[range], *, dim: int = -1, site: str, out: Tensor | None = None) -> Tensor:
        """Recorded with the shape and bytes of the whole result."""
        ask = asks.all_gather(self, x, ranges, dim, site, out)
        return self._note(ask, self.inner.all_gather(x, ranges, dim=dim, site=site, out=out))

    def reduce_scatter(
        self, x: Tensor, ranges: Sequence[range], *, dim: int = -1, site: str, out: Tensor | None = None
    ) -> Tensor:
        """Recorded with the shape and bytes of `x`."""
        ask = asks.reduce_scatter(self, x, ranges, dim, site, out)
        return self._note(ask, self.inner.reduce_scatter(x, ranges, dim=dim, site=site, out=out))

    def all_to_all(
        self,
        x: Tensor,
        send_counts: Sequence[int],
        recv_counts: Sequence[int],
        *,
        site: str,
        out: Tensor | None = None,
    ) -> Tensor:
        """Recorded with the shape and bytes of this rank's result."""
        ask = asks.all_to_all(self, x, send_counts, recv_counts, site, out)
        return self._note(ask, self.inner.all_to_all(x, send_counts, recv_counts, site=site, out=out))

    def broadcast(self, x: Tensor, root: int, *, site: str, out: Tensor | None = None) -> Tensor:
        """Recorded with the shape and bytes of `x`, on every rank."""
        ask = asks.broadcast(self, x, root, site, out)
        return self._note(ask, self.inner.broadcast(x, root, site=site, out=out))

    def send(self, x: Tensor, to: int, *, site: str) -> None:
        """Recorded with the shape and bytes of `x`."""
        ask = asks.message(self, "send", x, to, site)
        self.inner.send(x, to, site=site)
        self._note(ask, x)

    def recv(self, out: Tensor, source: int, *, site: str) -> Tensor:
        """Recorded with the shape and bytes of `out`."""
        ask = asks.message(self, "recv", out, source, site)
        return self._note(ask, self.inner.recv(out, source, site=site))

    def barrier(self, *, site: str = "barrier") -> None:
        """Recorded with shape () and 0 bytes."""
        ask = asks.barrier(self, site)
        self.inner.barrier(site=site)
        self._note(ask, ask.x)

    def enter(self, x: Tensor, *, site: str) -> Tensor:
        """Not recorded: it moves nothing."""
        return self.inner.enter(x, site=site)

    def close(self) -> None:
        """Closes the inner backend; the calls stay."""
        self.inner.close()

    def _note(self, ask: Ask, result: Tensor) -> Tensor:
        self.calls.append(ask.call)
        return result
