"""The hidden states of a prompt, mean and last, are those of transformers: at every degree, in chunks of any size, whatever
else runs, gives way or is lost."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from shardwise.engine.embed import embedding
from shardwise.engine.setup import Options, Setup, resolve
from shardwise.errors import RequestError
from shardwise.sched.pooling import PoolingParams
from shardwise.sched.request import SamplingParams
from shardwise.spec.layout import PAGE_TOKENS
from tests.checkpoints import FAMILIES
from tests.engine.drive import Ask, Drive

LIMIT = 1e-5
"""The largest relative error that passes: max |ours - theirs| over max |theirs|, in float32."""

USUAL = (
    "llama",
    "gpt2",
    "gemma2",
    "gemma3",
    "mistral-window",
    "phi3-longrope",
    "mixtral",
    "gpt-oss",
    "deepseek-v3",
    "olmo2",
)
"""Dense, mixtures, latents, windows, and angles that depend on the length; the others are left to the slow tests."""

PROMPTS = [tuple(random.Random(length).choices(range(3, 96), k=length)) for length in (1, 9, 15, 33, 40)]
PAGES = 6
"""So few that prompts must give way to each other."""

Checkpoints = Callable[[str], Path]


@pytest.fixture(scope="module")
def states(checkpoint: Checkpoints) -> Callable[[str], list[torch.Tensor]]:
    """states(family): transformers' final hidden states [tokens, hidden] of each prompt, after the last norm."""

    @cache
    def of(name: str) -> list[torch.Tensor]:
        from transformers import AutoModelForCausalLM

        found = []
        for prompt in PROMPTS:
            # Read anew for each prompt: dynamic rope keeps state from one prompt to the next.
            model = AutoModelForCausalLM.from_pretrained(checkpoint(name), dtype=torch.float32, attn_implementation="eager")
            with torch.inference_mode():
                found.append(model.eval()(torch.tensor([prompt]), output_hidden_states=True).hidden_states[-1][0].double())
        return found

    return of


def setup_of(folder: Path, tp: int, chunk: int) -> Setup:
    options = Options(
        str(folder), tp=tp, dtype="float32", device="cpu", threads=1, max_num_batched_tokens=chunk, max_num_seqs=min(chunk, 4)
    )
    setup = resolve(options)
    return replace(setup, pages=tuple(min(count, 1 + PAGES) for count in setup.pages))


def asks() -> list[Ask]:
    """Each prompt pooled both ways, twice, among others that are continued."""
    both = [Ask(prompt, PoolingParams(pooling)) for prompt in PROMPTS for pooling in ("mean", "last", "mean")]
    drawn = [Ask(prompt[:20], SamplingParams(temperature=0.0, max_tokens=12), priority=-1) for prompt in PROMPTS]
    return [ask for n, ask in enumerate(both) for ask in ([ask, drawn[n // 3]] if n % 3 == 0 else [ask])]


def worst(drive: Drive, numbers: list[int], wanted: list[Ask], states: list[torch.Tensor]) -> float:
    """The largest error of all that were pooled; each must have ended once, without an error."""
    known = dict(zip(PROMPTS, states, strict=True))
    errors = []
    for number, ask in zip(numbers, wanted, strict=True):
        told = drive.told[number]
        assert [ended.error for ended in told.ended] == [None]
        if isinstance(ask.params, PoolingParams):
            (pooled,) = told.pooled
            ours = torch.tensor(embedding(pooled, normalize=False), dtype=torch.float64)
            theirs = known[ask.prompt].mean(0) if ask.params.pooling == "mean" else known[ask.prompt][-1]
            assert ours.shape == theirs.shape
            errors.append(((ours - theirs).abs().max() / theirs.abs().max()).item())
    assert len(errors) == 3 * len(PROMPTS)
    return max(errors)


@pytest.mark.parametrize("tp", [1, 2, 3])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in USUAL else [pytest.mark.slow])
        for name, config in FAMILIES.items()
        if "text_config" not in config
    ],
)
def test_as_transformers(
    name: str, tp: int, checkpoint: Checkpoints, states: Callable[[str], list[torch.Tensor]], figures: Callable[..., None]
) -> None:
    """In chunks of up to 7 tokens, with few pages, and steps that are lost."""
    with Drive(setup_of(checkpoint(name), tp, 7)) as drive:
        numbers = drive.arriving(asks(), random.Random(tp), lossy=True)
        error = worst(drive, numbers, asks(), states(name))
    figures("pooled states, chunks of 7", worst=error, preempted=drive.preempted, lost=drive.dropped)
    assert error <= LIMIT
    assert drive.dropped > 0


def test_whole_prompts_and_new_ranks(checkpoint: Checkpoints, states: Callable[[str], list[torch.Tensor]]) -> None:
    """In one chunk each; and again where the ranks, with all that they had, are lost after a few steps."""
    wanted = asks()
    with Drive(setup_of(checkpoint("llama"), 2, 64)) as drive:
        numbers = [drive.add(ask) for ask in wanted]
        drive.finish()
        assert worst(drive, numbers, wanted, states("llama")) <= LIMIT
    with Drive(setup_of(checkpoint("llama"), 2, 7)) as drive:
        numbers = [drive.add(ask) for ask in wanted]
        for turn in range(60):
            drive.turn()
            if turn % 20 == 3:
                drive.restart()
        drive.finish()
        assert worst(drive, numbers, wanted, states("llama")) <= LIMIT


def test_prefixes_serve_the_last_state_and_not_the_mean(checkpoint: Checkpoints) -> None:
    prompt = tuple(range(3, 3 + 2 * PAGE_TOKENS + 5))
    with Drive(setup_of(checkpoint("llama"), 1, 16)) as drive:
        first, mean, last = (drive.alone(Ask(prompt, PoolingParams(pooling))) for pooling in ("mean", "mean", "last"))
    assert [told.ended[0].cached for told in (first, mean, last)] == [0, 0, 2 * PAGE_TOKENS]
    assert first.pooled[0].vector == mean.pooled[0].vector and first.pooled[0].count == len(prompt)
    assert last.pooled[0].count == 1


@pytest.mark.parametrize("length", [32, 33])
def test_a_prompt_as_long_as_the_context(checkpoint: Checkpoints, length: int) -> None:
    """With pages for it and nobody else: nothing is drawn, so no place is kept for a token."""
    setup = resolve(
        Options(str(checkpoint("mistral-window")), tp=1, dtype="float32", device="cpu", threads=1, max_num_batched_tokens=7)
    ).only(length)
    with Drive(setup) as drive:
        for pooling in ("mean", "last"):
            told = drive.alone(Ask(tuple(range(3, 3 + length)), PoolingParams(pooling)))
            assert told.ended[0].error is None and len(told.pooled) == 1
        with pytest.raises(RequestError, match=f"the prompt has {length + 1} tokens; it may have {length}"):
            drive.add(Ask(tuple(range(3, 4 + length)), PoolingParams()))
