"""A rank's collectives, each with a tick before and after it, so that somebody outside sees where a rank stands.

Knows what is ticked, and not where it is written down. Imports no torch at run time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from shardwise.spec.traffic import BRANCHES, HEADS_NORM, SITES

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from shardwise.comm.protocol import Comm

_SUMS = (*dict.fromkeys(SITES.values()), HEADS_NORM, BRANCHES, "ranks")
_GATHERS = ("draw_peaks", "draw_best", "draw_candidates", "draw_whole", "logprobs", "logits")
_CALLS = {"all_reduce": _SUMS, "all_gather": _GATHERS, "broadcast": ("draw_decided",), "barrier": ("loaded",)}
_OPS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send", "recv", "barrier")

PLACES: tuple[tuple[str, str], ...] = (
    *((op, "") for op in _OPS),
    *((op, site) for op, sites in _CALLS.items() for site in sites),
)
"""(op, site) of the calls that have a number of their own, by that number; of others, only the op is said, with site ""."""

_NUMBERS = {place: number for number, place in enumerate(PLACES)}

HEAD = 1 << 20
"""The layer that `layer` is told after the last one."""
CHOOSING = HEAD + 1
"""And while tokens are chosen."""


def place_of(op: str, site: str) -> int:
    """The number of a call, which `PLACES` tells the meaning of."""
    return _NUMBERS.get((op, site), _NUMBERS[op, ""])


def place_name(place: int) -> str:
    """ "all_reduce of mlp_down"."""
    op, site = PLACES[place] if 0 <= place < len(PLACES) else ("collective", "")
    return f"{op} of {site}" if site else op


class Ticks(Protocol):
    """What a rank says of where it is, as often as it can: each costs a fraction of a microsecond, and none ever fails."""

    def loading(self) -> None:
        """The group has met; more of the weights are in place each time."""

    def step(self, number: int, tokens: int) -> None:
        """Step `number` begins, of so many tokens."""

    def layer(self, index: int) -> None:
        """A layer of the step begins, or `HEAD`, or `CHOOSING`."""

    def enter(self, place: int) -> None:
        """A collective begins: see `place_of`."""

    def leave(self) -> None:
        """It has ended well."""

    def idle(self) -> None:
        """All that the rank was told to do is done."""

    def aside(self) -> None:
        """What comes now is no step, and may take long: a recording is written."""

    def left(self) -> None:
        """The rank takes no further part in this group."""


class Silent:
    """Says nothing: for ranks that nobody watches."""

    def loading(self) -> None: ...
    def step(self, number: int, tokens: int) -> None: ...
    def layer(self, index: int) -> None: ...
    def enter(self, place: int) -> None: ...
    def leave(self) -> None: ...
    def idle(self) -> None: ...
    def aside(self) -> None: ...
    def left(self) -> None: ...


class Ticking:
    """Any backend, with ticks around each call. A call that raises is never left: where it happened stays to be read."""

    def __init__(self, inner: Comm, ticks: Ticks) -> None:
        self.inner, self.ticks = inner, ticks
        self.rank, self.size, self.epoch = inner.rank, inner.size, inner.epoch
        # Bound once: this stands in every layer.
        self._enter, self._leave, self._all_reduce = ticks.enter, ticks.leave, inner.all_reduce
        self._sums = {site: place_of("all_reduce", site) for site in _SUMS}
        self._other_sum = place_of("all_reduce", "")

    def all_reduce(self, x: Tensor, *, site: str, out: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """See `Comm.all_reduce`."""
        self._enter(self._sums.get(site, self._other_sum))
        result = self._all_reduce(x, site=site, out=out, dtype=dtype)
        self._leave()
        return result

    def all_gather(self, x: Tensor, ranges: Sequence[range], *, dim: int = -1, site: str, out: Tensor | None = None) -> Tensor:
        """See `Comm.all_gather`."""
        self._enter(place_of("all_gather", site))
        result = self.inner.all_gather(x, ranges, dim=dim, site=site, out=out)
        self._leave()
        return result

    def reduce_scatter(
        self, x: Tensor, ranges: Sequence[range], *, dim: int = -1, site: str, out: Tensor | None = None
    ) -> Tensor:
        """See `Comm.reduce_scatter`."""
        self._enter(place_of("reduce_scatter", site))
        result = self.inner.reduce_scatter(x, ranges, dim=dim, site=site, out=out)
        self._leave()
        return result

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
        self._enter(place_of("all_to_all", site))
        result = self.inner.all_to_all(x, send_counts, recv_counts, site=site, out=out)
        self._leave()
        return result

    def broadcast(self, x: Tensor, root: int, *, site: str, out: Tensor | None = None) -> Tensor:
        """See `Comm.broadcast`."""
        self._enter(place_of("broadcast", site))
        result = self.inner.broadcast(x, root, site=site, out=out)
        self._leave()
        return result

    def send(self, x: Tensor, to: int, *, site: str) -> None:
        """See `Comm.send`."""
        self._enter(place_of("send", site))
        self.inner.send(x, to, site=site)
        self._leave()

    def recv(self, out: Tensor, source: int, *, site: str) -> Tensor:
        """See `Comm.recv`."""
        self._enter(place_of("recv", site))
        result = self.inner.recv(out, source, site=site)
        self._leave()
        return result

    def barrier(self, *, site: str = "barrier") -> None:
        """See `Comm.barrier`."""
        self._enter(place_of("barrier", site))
        self.inner.barrier(site=site)
        self._leave()

    def enter(self, x: Tensor, *, site: str) -> Tensor:
        """See `Comm.enter`: no tick, for it waits for nobody."""
        return self.inner.enter(x, site=site)

    def close(self) -> None:
        """See `Comm.close`."""
        self.inner.close()
        self.ticks.left()
