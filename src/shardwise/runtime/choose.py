"""One token for each row, the whole batch at once, out of logits that no rank has all of.

What a rank finds in its own ids is gathered, and merged by comparing: every number is computed by one rank, and no sum is
rounded (the weights of top_p are whole numbers), so all ranks come to the same token, and at every degree to that one which all
logits together would give. Only where the likeliest few of each rank are not enough are the logits themselves gathered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from shardwise.runtime import kinds, order
from shardwise.runtime.kinds import PIECE, Place, pieces
from shardwise.runtime.noise import gumbel, key
from shardwise.runtime.parts import Parts
from shardwise.runtime.score import finite

WEIGHT = 2.0**40
"""What the likeliest token weighs. Sums over a vocabulary of up to 2^22 ids fit 63 bits; a token that is less likely than the
likeliest by a factor of 2^41 weighs nothing."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """The draws of N rows as columns [N, 1]: the noise's key, the temperature, how far below the largest logit min_p reaches (0
    or less), and the bounds of top_k and top_p; a top_p of infinity keeps all."""

    keys: torch.Tensor
    temperature: torch.Tensor
    reach: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor

    @staticmethod
    def of(places: Sequence[Place], vocabulary: int, device: torch.device) -> Numbers:
        draws = [place.draw for place in places]
        keys = [key(place.draw.seed, place.draw.choice, place.position) for place in places]
        reals = [
            (
                draw.temperature,
                draw.temperature * math.log(draw.min_p) if draw.min_p > 0 else -math.inf,
                draw.top_p if draw.top_p < 1 else math.inf,
            )
            for draw in draws
        ]
        wholes = [(k, draw.top_k if draw.top_k > 0 else vocabulary) for k, draw in zip(keys, draws, strict=True)]
        real = torch.tensor(reals, dtype=torch.float64).view(-1, 3).to(device)
        whole = torch.tensor(wholes, dtype=torch.int64).view(-1, 2).to(device)
        return Numbers(whole[:, :1], real[:, :1], real[:, 1:2], whole[:, 1:], real[:, 2:])

    def rows(self, rows: Sequence[int]) -> Numbers:
        chosen = list(rows)
        return Numbers(*(column[chosen] for column in (self.keys, self.temperature, self.reach, self.top_k, self.top_p)))


@dataclass(frozen=True, slots=True)
class Drawn:
    """tokens [N]; and tops [N], float64: NaN where a row's logits are not finite, minus infinity where all ids are excluded,
    else any other number. `uncertain`: for how many rows the candidates were not enough, offer by offer."""

    tokens: torch.Tensor
    tops: torch.Tensor
    uncertain: tuple[int, ...]


class Chooser:
    """One batch of rows: `logits` [N, own ids] after edits, and as they were before, `plain`: the same where there are none."""

    def __init__(self, logits: torch.Tensor, plain: torch.Tensor, places: Sequence[Place], parts: Parts) -> None:
        self._logits, self._plain, self._places, self._parts = logits, plain, places, parts
        self._device = logits.device
        self._tokens = torch.zeros(len(places), dtype=torch.int64, device=self._device)
        self._tops = torch.full((len(places),), math.nan, dtype=torch.float64, device=self._device)

    # What not every batch asks for.

    @cached_property
    def _finite(self) -> torch.Tensor:
        return finite(self._plain)

    @cached_property
    def _ids(self) -> torch.Tensor:
        return torch.arange(self._parts.own.start, self._parts.own.stop, device=self._device)

    @cached_property
    def _numbers(self) -> Numbers:
        return Numbers.of(self._places, self._parts.vocabulary, self._device)

    @cached_property
    def _peaks(self) -> torch.Tensor:
        return torch.full((len(self._places), 1), math.nan, dtype=torch.float64, device=self._device)

    def choose(self) -> Drawn:
        """Every rank takes part, in the same calls."""
        found: dict[kinds.Kind, list[int]] = {"greedy": [], "noisy": [], "floor": [], "candidates": [], "whole": []}
        for row, place in enumerate(self._places):
            found[kinds.kind(place.draw, self._parts.vocabulary)].append(row)
        if narrow := sorted(found["floor"] + found["candidates"] + found["whole"]):
            self._find_peaks(narrow)
        if found["greedy"] or found["noisy"] or found["floor"]:
            self._take_best(found["greedy"], found["noisy"] + found["floor"])
        left, uncertain = found["candidates"], []
        for offered in kinds.offers([self._places[row].draw for row in left], self._parts.vocabulary):
            left = self._take_candidates(left, offered) if left else []
            uncertain.append(len(left))
        whole = sorted(found["whole"] + left)
        for piece in pieces(len(whole), PIECE // 8):
            self._take_whole([whole[i] for i in piece])
        return Drawn(self._tokens, self._tops, tuple(uncertain))

    def _of(self, rows: list[int]) -> torch.Tensor:
        """Their logits, without a copy where they are all rows."""
        return self._logits if self._all(rows) else self._logits[rows]

    def _all(self, rows: list[int]) -> bool:
        return rows == list(range(len(self._places)))

    # --- largest of all -----------------------------------------------------------------------------------------------

    def _find_peaks(self, rows: list[int]) -> None:
        """The largest logit of each row, of all ranks."""
        own = self._of(rows)
        peaks = own.amax(-1).double() if own.shape[1] else own.new_full((len(rows),), -math.inf, dtype=torch.float64)
        peaks = torch.where(self._finite[rows], peaks, math.nan)
        peaks = self._parts.gather(peaks[:, None], "draw_peaks").amax(1)
        self._peaks[rows], self._tops[rows] = peaks, peaks[:, 0]

    def _take_best(self, greedy: list[int], noisy: list[int]) -> None:
        """The largest, of logits or of logits with noise. The lowest id where some are equal."""
        rows = greedy + noisy
        best = self._greedy(greedy) if greedy else self._noisiest(noisy)
        if greedy and noisy:
            best = torch.cat((best, self._noisiest(noisy)))
        found = self._parts.gather(best, "draw_best")  # [rows, parts, 2]
        tops, ids = found.unbind(-1)
        top = tops.amax(-1)
        # An id is a whole number far below 2^53. No id belongs to a NaN.
        ids = torch.where(tops == top[:, None], ids, self._parts.vocabulary).amin(-1)
        tokens = ids.clamp_(max=self._parts.vocabulary - 1).long()
        if self._all(rows):
            self._tops, self._tokens = top, tokens
        else:
            self._tops[rows], self._tokens[rows] = top, tokens

    def _greedy(self, rows: list[int]) -> torch.Tensor:
        """[rows, 2]: the largest logit among this rank's ids, and its id; NaN where one was not finite."""
        if self._logits is self._plain:
            best = self._parts.step.best(self._of(rows))
        else:
            best = self._most(self._of(rows))
            best[:, 0].masked_fill_(~self._finite[rows], math.nan)
        best[:, 1] += self._parts.own.start
        return best

    def _most(self, logits: torch.Tensor) -> torch.Tensor:
        """The same of logits after edits, minus infinity and NaN among them."""
        if not logits.shape[1]:
            return self._parts.step.best(logits)
        most = logits.max(-1)
        return torch.stack((most.values.double(), most.indices.double()), -1)

    def _noisiest(self, rows: list[int]) -> torch.Tensor:
        """[rows, 2]: the largest sum of logit and noise among this rank's ids, and its id; NaN as there."""
        tops, ids = self._noisy(rows)
        return torch.stack((torch.where(self._finite[rows], tops, math.nan), ids), -1)

    def _noisy(self, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """(tops, ids) of the largest sums of logit and noise among this rank's ids; a stretch of ids at a time."""
        logits, numbers = self._of(rows), self._numbers.rows(rows)
        lowest = torch.nan_to_num(self._peaks[rows], nan=-math.inf) + numbers.reach
        tops = torch.full((len(rows),), -math.inf, dtype=torch.float64, device=self._device)
        ids = torch.zeros_like(tops)
        for columns in order.stretches(logits):
            own, part = self._ids[columns], logits[:, columns].double()
            noisy = gumbel(numbers.keys, own).double().mul_(numbers.temperature).add_(part)
            best = noisy.masked_fill_(part < lowest, -math.inf).max(-1)
            better = best.values > tops
            tops, ids = torch.where(better, best.values, tops), torch.where(better, own[best.indices].double(), ids)
        return tops, ids

    # --- narrowed -----------------------------------------------------------------------------------------------------

    def _take_candidates(self, rows: list[int], offered: int) -> list[int]:
        """The rows for which the largest `offered` of each rank were not enough; the others have their token."""
        numbers, peaks = self._numbers.rows(rows), self._peaks[rows]
        draws = [self._places[row].draw for row in rows]
        logits = self._of(rows)
        packed = order.likeliest(logits, self._ids, offered)
        heavy = [i for i, draw in enumerate(draws) if draw.top_p < 1 and not 0 < draw.top_k < self._parts.vocabulary]
        mass = torch.zeros(len(rows), 1, dtype=torch.int64, device=self._device)
        if heavy:
            mass[heavy] = self._mass(logits[heavy], peaks[heavy], numbers.rows(heavy))
        values, ids = order.unpack(packed)
        noise = gumbel(numbers.keys, ids)
        sent = torch.cat((packed, noise.view(torch.int32).long(), _weights(values, peaks, numbers), mass), -1)
        found = self._parts.gather(sent, "draw_candidates")  # [rows, parts, 3 · offered + 1]
        packed, bits, weights = (found[:, :, i * offered : (i + 1) * offered].flatten(1) for i in range(3))
        total = found[:, :, -1].sum(-1, keepdim=True) if heavy else None
        ordered, place = packed.sort(-1, descending=True)
        # The first of them are the first of all: a rank that has more to offer has none that is larger.
        ordered, place = ordered[:, :offered], place[:, :offered]
        noise, weights = bits.gather(1, place).int().view(torch.float32), weights.gather(1, place)
        given = torch.zeros(len(rows), 1, dtype=torch.bool, device=self._device)
        given[heavy] = True
        tokens, enough = _narrowed(ordered, noise, weights, (given, total), peaks, numbers)
        self._tokens[rows] = tokens
        if not heavy or offered == self._parts.vocabulary:
            return []
        # The one place where the host waits for the device: what to do next depends on it.
        return [row for row, one in zip(rows, enough.tolist(), strict=True) if not one]

    def _mass(self, logits: torch.Tensor, peaks: torch.Tensor, numbers: Numbers) -> torch.Tensor:
        """The weights of all of this rank's ids that min_p leaves, added up: [rows, 1]."""
        total = torch.zeros(len(logits), 1, dtype=torch.int64, device=self._device)
        for columns in order.stretches(logits):
            part = logits[:, columns]
            held = part.double() - peaks >= numbers.reach
            total += (_weights(part, peaks, numbers) * held).sum(-1, keepdim=True)
        return total

    def _take_whole(self, rows: list[int]) -> None:
        """Rows whose logits are gathered. The lead rank decides: the weights of an id are here computed by every rank."""
        logits = self._parts.whole(self._logits[rows], "draw_whole")
        tokens = torch.zeros(len(rows), dtype=torch.int64, device=self._device)
        if self._parts.lead:
            numbers, peaks = self._numbers.rows(rows), self._peaks[rows]
            every = torch.arange(self._parts.vocabulary, device=self._device)
            ordered = order.falling(order.pack(logits, every))
            values, ids = order.unpack(ordered)
            noise = torch.cat([gumbel(numbers.keys, ids[:, part]) for part in order.stretches(ids)], -1)
            weights = _weights(values, peaks, numbers)
            tokens, _ = _narrowed(ordered, noise, weights, None, peaks, numbers)
        self._tokens[rows] = self._parts.decide(tokens, "draw_decided")


def _weights(logits: torch.Tensor, peaks: torch.Tensor, numbers: Numbers) -> torch.Tensor:
    """How likely each is beside the likeliest, as a whole number up to WEIGHT: [rows, ids]."""
    scaled = logits.double().sub_(peaks).div_(numbers.temperature)
    return scaled.exp_().mul_(WEIGHT).round_().long()


def _narrowed(
    ordered: torch.Tensor,
    noise: torch.Tensor,
    weights: torch.Tensor,
    totals: tuple[torch.Tensor, torch.Tensor | None] | None,
    peaks: torch.Tensor,
    numbers: Numbers,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens [N], enough [N]): the token with most noise among those that min_p, top_k and top_p leave of `ordered` [N, few].

    top_p is of the weights that min_p and top_k leave: those among the few, or where `totals` say so, as a mask and numbers
    [N, 1], of the whole row. Then the few may not be `enough`.
    """
    values, ids = order.unpack(ordered)
    values = values.double()
    left = (torch.arange(ordered.shape[1], device=ordered.device) < numbers.top_k) & (values - peaks >= numbers.reach)
    weights = weights * left
    running = weights.cumsum(-1)
    total = running[:, -1:]
    if totals is not None and totals[1] is not None:
        total = torch.where(totals[0], totals[1], total)
    bound = numbers.top_p * total.double()
    left &= (running - weights).double() < bound
    # The likeliest stays whatever the bound is.
    left[:, 0] = True
    noisy = (noise.double() * numbers.temperature + values).masked_fill_(~left, -math.inf)
    best = noisy.amax(-1, keepdim=True)
    tokens = torch.where(noisy == best, ids, 2**62).amin(-1)
    return torch.where(tokens == 2**62, 0, tokens), (running[:, -1:].double() >= torch.where(bound.isinf(), 0.0, bound))[:, 0]
