"""The tokens that the last steps drew, kept on the device: the next step takes them from here without asking the host."""

from __future__ import annotations

from collections.abc import Sequence

import torch

STEPS = 4
"""How many steps are remembered that drew something: more than are ever in flight."""


class Recent:
    """Up to `sequences` tokens of each of the last STEPS steps that drew any."""

    def __init__(self, sequences: int, device: torch.device) -> None:
        self.tokens = torch.zeros(STEPS * sequences, dtype=torch.int64, device=device)
        self._sequences = sequences
        self._places: dict[int, dict[int, int]] = {}
        self._next = 0

    def keep(self, number: int, sequences: Sequence[int], tokens: torch.Tensor) -> None:
        """Remembers tokens [n], the ones that step `number` drew for these n sequences. The oldest step is forgotten."""
        if not sequences:
            return
        if len(sequences) > self._sequences:
            raise ValueError(f"step {number} draws for {len(sequences)} sequences; this rank takes up to {self._sequences}")
        start, self._next = self._next * self._sequences, (self._next + 1) % STEPS
        if len(self._places) == STEPS:
            del self._places[next(iter(self._places))]
        self._places[number] = {sequence: start + i for i, sequence in enumerate(sequences)}
        self.tokens[start : start + len(sequences)] = tokens

    def place(self, number: int, sequence: int) -> int:
        """Where in `tokens` that sequence's token of step `number` is; ValueError where it is not kept."""
        try:
            return self._places[number][sequence]
        except KeyError:
            kept = ", ".join(str(known) for known in self._places) or "none"
            raise ValueError(
                f"no token of sequence {sequence} is kept from step {number}; kept are those of steps {kept}: send its id"
            ) from None
