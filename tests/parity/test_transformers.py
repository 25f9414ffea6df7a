"""The same weights give the same logits and the same greedy tokens as transformers, for every family at every degree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from tests.checkpoints import FAMILIES
from tests.group import Group, Sequence_, even, layout_of

LIMIT = 1e-4
"""The largest relative logit error that passes: max |ours - theirs| over max |theirs|."""

TIE = 1e-5
"""A token may be another one only where transformers' own two best logits are nearer than this, relatively."""

NEW = 32

DEGREES = {"1": even(1), "2": even(2), "3": even(3), "3:1:1": (3.0, 1.0, 1.0), "5": even(5)}

Checkpoints = Callable[[str], Path]
Figures = Callable[..., None]


@dataclass(frozen=True)
class Reference:
    """What transformers computes for one prompt: logits of all its positions, then of every step of greedy decoding."""

    prompt: tuple[int, ...]
    logits: torch.Tensor  # [prompt, vocabulary]
    tokens: tuple[int, ...]
    steps: torch.Tensor  # [NEW, vocabulary]; row i chose tokens[i]


def reference(folder: Path, prompt: Sequence[int], dtype: torch.dtype = torch.float32) -> Reference:
    # Read anew for each prompt: dynamic rope keeps state from one prompt to the next.
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    model.generation_config.eos_token_id = None
    with torch.inference_mode():
        ids = torch.tensor([prompt])
        logits = model(ids).logits[0].float()
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        )
    steps = torch.cat(out.logits).float()
    return Reference(tuple(prompt), logits, tuple(out.sequences[0, len(prompt) :].tolist()), steps)


def prompts(vocab: int) -> list[list[int]]:
    """Shorter than any window, longer than a page, and longer than every boundary."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, vocab, (length,), generator=generator).tolist() for length in (7, 21, 40)]


@pytest.fixture(scope="session")
def references(checkpoint: Checkpoints) -> Callable[[str], list[Reference]]:
    @cache
    def of(name: str) -> list[Reference]:
        folder = checkpoint(name)
        vocab = layout_of(folder, even(1)).model.vocab
        return [reference(folder, prompt) for prompt in prompts(vocab)]

    return of


@dataclass
class Score:
    """Worst relative error and tokens compared so far."""

    worst: float = 0.0
    tokens: int = 0
    ties: int = 0

    def logits(self, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        assert ours.shape == theirs.shape and torch.isfinite(ours).all()
        self.worst = max(self.worst, ((ours - theirs).abs().max() / theirs.abs().max()).item())

    def token(self, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        """One choice, on the same history."""
        self.tokens += 1
        if ours.argmax() != theirs.argmax():
            best = theirs.topk(2).values
            gap = ((best[0] - best[1]) / theirs.abs().max()).item()
            assert gap < TIE, f"token {self.tokens}: {int(ours.argmax())} and not {int(theirs.argmax())}, gap {gap:.2g}"
            self.ties += 1

def compare(group: Group, wanted: list[Reference], score: Score) -> None:
    """All prompts in one step, then token by token in one batch, along transformers' own tokens."""
    sequences = [group.sequence(i) for i in range(len(wanted))]
    for sequence, want in zip(sequences, wanted, strict=True):
        sequence.tokens[:] = want.prompt
    parts = group.logits(*(s.take() for s in sequences)).split([len(w.prompt) for w in wanted])
    for part, want in zip(parts, wanted, strict=True):
        score.logits(part, want.logits)
        score.token(part[-1], want.steps[0])
    for i in range(1, NEW):
        for sequence, want in zip(sequences, wanted, strict=True):
            sequence.tokens.append(want.tokens[i - 1])
        rows = group.logits(*(s.take(wants=1) for s in sequences))
        score.logits(rows, torch.stack([want.steps[i] for want in wanted]))
        for row, want in zip(rows, wanted, strict=True):
            score.token(row, want.steps[i])


def chunked(group: Group, sequence: Sequence_, want: Reference, size: int, score: Score) -> None:
    """The prompt in pieces of `size` tokens."""
    sequence.tokens[:] = want.prompt
    parts = []
    while sequence.computed < len(want.prompt):
        parts.append(group.logits(sequence.take(size)))
    score.logits(torch.cat(parts), want.logits)


@pytest.mark.parametrize("shares", DEGREES.values(), ids=DEGREES)
@pytest.mark.parametrize("name", FAMILIES)
def test_family(name: str, shares, checkpoint: Checkpoints, references, figures: Figures) -> None:
    folder, wanted, score = checkpoint(name), references(name), Score()
    with Group(layout_of(folder, shares), folder, sequences=len(wanted)) as group:
        compare(group, wanted, score)
        chunked(group, group.sequence(0), wanted[1], 5, score)
        chunked(group, group.sequence(1), wanted[2], 17, score)
    figures(f"parity {name}", worst=score.worst, tokens=score.tokens, ties=score.ties)
    assert score.worst <= LIMIT
    assert score.ties == 0
