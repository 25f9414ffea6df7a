"""What transformers computes from a checkpoint, and how ours is held against it: along its own tokens, position by position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.group import Group, Request

LIMIT = 1e-4
"""The largest relative logit error that passes: max |ours - theirs| over max |theirs|."""

TIE = 1e-5
"""A token may be another one only where transformers' own two best logits are nearer than this, relatively."""

NEW = 32
"""Tokens generated after each prompt."""


@dataclass(frozen=True)
class Reference:
    """What transformers computes for one prompt: logits of all its positions, then of every step of greedy decoding."""

    prompt: tuple[int, ...]
    logits: torch.Tensor  # [prompt, vocabulary]
    tokens: tuple[int, ...]
    steps: torch.Tensor  # [NEW, vocabulary]; row i chose tokens[i]


def reference(folder: Path, prompt: Sequence[int], dtype: str = "float32") -> Reference:
    # Read anew for each prompt: dynamic rope keeps state from one prompt to the next.
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="eager").eval()
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


def prompts() -> list[list[int]]:
    """One shorter than a page, that grows over every boundary of the families; one longer than all of them."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, 96, (length,), generator=generator).tolist() for length in (9, 40)]


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
    sequences = [group.request(i) for i in range(len(wanted))]
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


def chunked(group: Group, sequence: Request, want: Reference, size: int, score: Score) -> None:
    """The prompt in pieces of `size` tokens."""
    sequence.tokens[:] = want.prompt
    parts = []
    while sequence.computed < len(want.prompt):
        parts.append(group.logits(sequence.take(size)))
    score.logits(torch.cat(parts), want.logits)
