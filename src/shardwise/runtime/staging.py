"""A step's numbers on their way to the device: gathered in one block of memory allocated once, sent as one copy."""

from __future__ import annotations

from math import prod

import numpy as np
import torch


class Staging:
    """`capacity` whole numbers on the host, and the same on the device. A round is `begin`, any number of `put`, `send`.

    Equal sizes put in equal order land at equal addresses, which a captured graph relies on. On a CPU host and device are one.
    On CUDA two blocks of pinned memory take turns, and a block is filled again only when its last copy has been made.
    """

    def __init__(self, capacity: int, device: torch.device) -> None:
        cuda = device.type == "cuda"
        self._host = [torch.empty(capacity, dtype=torch.int64, pin_memory=cuda) for _ in range(2 if cuda else 1)]
        self._device = torch.empty(capacity, dtype=torch.int64, device=device) if cuda else self._host[0]
        self._places = [block.numpy() for block in self._host]
        self._sent = [torch.cuda.Event() for _ in self._host] if cuda else []
        self._turn, self._used, self._capacity = 0, 0, capacity

    def begin(self) -> None:
        """What was put in before is gone."""
        self._turn, self._used = (self._turn + 1) % len(self._host), 0
        if self._sent:
            self._sent[self._turn].synchronize()

    def put(self, values: np.ndarray, size: int, fill: int = 0) -> torch.Tensor:
        """Where `values` [n, …] will be on the device after `send`, as [size, …]: those after the n-th are `fill`."""
        shape, count = (size, *values.shape[1:]), len(values)
        start, self._used = self._used, self._used + prod(shape)
        assert self._used <= self._capacity, f"{self._used} numbers for room of {self._capacity}"
        place = self._places[self._turn][start : self._used]
        place = place if len(shape) == 1 else place.reshape(shape)
        place[:count] = values
        if count < size:
            place[count:] = fill
        found = self._device[start : self._used]
        return found if len(shape) == 1 else found.view(shape)

    def send(self) -> None:
        """Queues the copy; what is queued after it sees the values."""
        if self._sent:
            self._device[: self._used].copy_(self._host[self._turn][: self._used], non_blocking=True)
            self._sent[self._turn].record()
