"""The same texts at each degree, one after another, and each run held against the first, or against a reference.

Whoever calls it says how ranks are started and who watches; it prints nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from shardwise.engine.ranks import Ranks
from shardwise.engine.setup import Options, Setup, resolve
from shardwise.engine.text import Tokenizer, open_tokenizer
from shardwise.errors import ShardwiseError, UserError
from shardwise.spec.moe import stacks
from shardwise.spec.requantised import alike
from shardwise.verify import texts
from shardwise.verify.drive import SEQUENCES, STEP_TOKENS, Advance, traced
from shardwise.verify.trace import Text, Trace, stride
from shardwise.verify.verdict import Comparison, Tolerance, Verdict, compare, tolerance

Outcome = Literal["reference", "refused", "failed"] | Verdict


class Reference(Protocol):
    """Something else that computes the model. `greedy`: it says which tokens it takes."""

    name: str
    greedy: bool

    def traces(self, setup: Setup, texts: Sequence[Text], limit: int, stride: int, advance: Advance) -> list[Trace]:
        """What it makes of each text and of the `limit` tokens that it takes for the likeliest after it; `advance` hears of
        places done. One place in `stride` has its logits kept, counted from the prompt's last."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked for: degrees and the shares of those that are not even, `limit` tokens after each text."""

    options: Options
    degrees: tuple[int, ...]
    limit: int
    prompts: str | None = None
    against: Reference | None = None

    def at(self, degree: int) -> Options:
        """The options of one degree; `shares` are for the degree of as many ranks."""
        shares = self.options.shares
        return replace(
            self.options,
            tp=degree,
            shares=shares if shares is not None and len(shares) == degree else None,
            max_num_batched_tokens=STEP_TOKENS,
            enable_prefix_caching=False,
        )


@dataclass(frozen=True, slots=True)
class Row:
    """One run: of `degree` ranks, or of the reference where that is None. `reason` says why it was refused, or differs."""

    name: str
    degree: int | None
    outcome: Outcome
    reason: str = ""
    comparison: Comparison | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was found. One place in `stride` had its logits compared. `spelled`: the text of each token that rows
    speak of, where there is a tokenizer."""

    model: str
    dtype: str
    device: str
    tolerance: Tolerance
    texts: tuple[Text, ...]
    limit: int
    stride: int
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    spelled: Mapping[int, str]

    @property
    def code(self) -> int:
        """The exit code: 1 where a run differs or failed, 2 where one was refused, else 0."""
        outcomes = [row.outcome for row in self.rows]
        return 1 if "differs" in outcomes or "failed" in outcomes else 2 if "refused" in outcomes else 0

    @property
    def verdict(self) -> str:
        """All rows in one line."""
        compared = [row for row in self.rows if row.comparison is not None]
        base = next(row.name for row in self.rows if row.outcome == "reference")
        worst = "differs" if self.code == 1 else "same up to rounding"
        if all(row.outcome == "same" for row in compared) and self.code != 1:
            worst = "same"
        wrong = [row.name for row in self.rows if row.outcome in ("differs", "failed")]
        refused = [row.name for row in self.rows if row.outcome == "refused"]
        left_out = f"; not run: {', '.join(refused)}" if refused else ""
        if wrong:
            return f"{', '.join(wrong)}: not the same as {base}{left_out}"
        return f"{worst}: {', '.join(row.name for row in compared)} against {base}{left_out}"


Start = Callable[[Setup], Ranks]
Watch = Callable[[str, int], AbstractContextManager[Advance]]
"""watch(name, places) lasts as long as a run of so many places, and hears how many more are done."""


class Verification:
    """Runs a plan. `start` gives ranks that have loaded, which are closed again before the next start."""

    def __init__(self, plan: Plan, start: Start, watch: Watch) -> None:
        self._plan, self._start, self._watch = plan, start, watch
        self._rows: list[Row] = []
        self._notes: list[str] = []
        self._base: list[Trace] | None = None
        self._tokenizer: Tokenizer | None = None

    def run(self) -> Report:
        """UserError where nothing can be compared at all: then nothing was run, or only what it would be held against."""
        plan = self._plan
        setups = self._setups()
        first = next(setup for setup in setups.values() if isinstance(setup, Setup))
        runnable = [setup for setup in setups.values() if isinstance(setup, Setup)]
        if plan.against is None and len(runnable) < 2:
            refused = "; ".join(f"-tp {degree}: {why}" for degree, why in setups.items() if isinstance(why, str))
            raise UserError(f"there is nothing to hold {_name(first)} against: give --against, or another degree ({refused})")
        vocabulary = first.layout.model.vocab
        chosen = self._texts(first, min(setup.context for setup in runnable))
        every = stride(chosen, plan.limit, vocabulary)
        model = first.layout.model
        rounded = "int8" if first.quantization else first.layout.dtype
        # Only compiled kernels give a head, or an output, the same bits whichever others a rank has.
        same = alike(model) and all(setup.layout.activations == "float32" for setup in runnable)
        limits = tolerance(rounded, model.layers, routed=any(stacks(model)), alike=same)
        places = sum(len(text.ids) + plan.limit - 1 for text in chosen)
        if plan.against is not None:
            begun = time.perf_counter()
            with self._watch(plan.against.name, places) as advance:
                self._base = plan.against.traces(first, chosen, plan.limit, every, advance)
            self._rows.append(Row(plan.against.name, None, "reference", seconds=time.perf_counter() - begun))
            if not plan.against.greedy:
                self._notes.append(f"{plan.against.name} does not name its tokens by id: greedy tokens are not compared")
        if first.quantization and not same:
            self._notes.append(
                f"{first.quantization.kind} weights: activations are rounded to 8 bits, not alike at every degree"
            )
        elif not first.quantization and first.layout.dtype != "float32":
            self._notes.append(f"{first.layout.dtype} rounds coarsely: --dtype float32 compares a thousand times closer")
        if every > 1:
            self._notes.append(f"logits are compared at one place in {every}, log-likelihoods and tokens at all")
        for degree, setup in setups.items():
            self._rows.append(
                self._row(degree, setup, chosen, every, limits, places)
                if isinstance(setup, Setup)
                else Row(f"-tp {degree}", degree, "refused", setup)
            )
        if not any(row.comparison for row in self._rows):
            raise ShardwiseError(
                "nothing could be compared: " + "; ".join(f"{row.name}: {row.reason}" for row in self._rows if row.reason)
            )
        return Report(
            first.name, first.layout.dtype, first.device, limits, tuple(chosen), plan.limit, every,
            tuple(self._rows), tuple(self._notes), self._spelled(),
        )  # fmt: skip

    def _spelled(self) -> dict[int, str]:
        firsts = [row.comparison.first for row in self._rows if row.comparison and row.comparison.first]
        if self._tokenizer is None:
            return {}
        ids = {token for first in firsts for token in (first.ours, first.theirs)}
        return {token: self._tokenizer.decode([token], skip_special_tokens=False) for token in sorted(ids)}

    def _setups(self) -> dict[int, Setup | str]:
        """Each degree's setup, or why it is refused. Raises where all are: then the model, or a flag, is at fault."""
        found: dict[int, Setup | str] = {}
        causes = []
        for degree in self._plan.degrees:
            try:
                found[degree] = resolve(self._plan.at(degree))
            except UserError as error:
                found[degree] = str(error)
                causes.append(error)
        if len(causes) == len(found):
            raise causes[0]
        return found

    def _texts(self, setup: Setup, context: int) -> list[Text]:
        """The user's texts, or the built-in ones, fitted to the context."""
        plain = (setup.folder / "tokenizer.json").is_file() or (setup.folder / "vocab.json").is_file()
        tokenizer = self._tokenizer = open_tokenizer(setup.folder) if plain else None
        vocabulary = setup.layout.model.vocab
        if self._plan.prompts is not None:
            given = texts.read_texts(self._plan.prompts, tokenizer)
        elif tokenizer is not None:
            given = texts.built_in(tokenizer)
        else:
            given = texts.random_ids(vocabulary)
            self._notes.append("the model has no tokenizer: the prompts are random token ids")
        found = texts.fitted(given, context, self._plan.limit, vocabulary)
        if clipped := sum(len(new.ids) < len(old.ids) for new, old in zip(found, given, strict=True)):
            self._notes.append(f"{clipped} of {len(found)} prompts are clipped, so that they fit the context of {context}")
        return found

    def _row(self, degree: int, setup: Setup, chosen: Sequence[Text], every: int, limits: Tolerance, places: int) -> Row:
        name, begun, base = _name(setup), time.perf_counter(), self._base
        if base is not None:
            places = sum(len(trace.places) for trace in base)
        setup = _small(setup, chosen, self._plan.limit)
        try:
            with closing(self._start(setup)) as ranks, self._watch(name, places) as advance:
                found = traced(ranks, setup, chosen, self._plan.limit, base, every, advance)
        except UserError as error:
            return Row(name, degree, "refused", str(error))
        except ShardwiseError as error:
            return Row(name, degree, "failed", str(error))
        seconds = time.perf_counter() - begun
        if base is None:
            self._base = found
            return Row(name, degree, "reference", seconds=seconds)
        compared = compare(found, base, limits)
        return Row(name, degree, compared.verdict, "; ".join(compared.reasons), compared, seconds)


def _small(setup: Setup, chosen: Sequence[Text], limit: int) -> Setup:
    """The same with a cache for a few of the texts side by side."""
    sequences = min(len(chosen), setup.limits.sequences, SEQUENCES)
    longest = max(len(text.ids) for text in chosen) + limit
    return replace(setup, limits=replace(setup.limits, sequences=sequences)).only(longest, sequences)


def _name(setup: Setup) -> str:
    """A degree as its flags say it."""
    shares = setup.layout.shares.attention
    uneven = len(set(shares)) > 1
    return f"-tp {setup.layout.mesh.tp}" + (f" -ts {','.join(f'{share:g}' for share in shares)}" if uneven else "")
