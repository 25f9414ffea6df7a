"""A trained model: real processes at degrees that its heads barely reach, the engine's own loop, and its loss on real text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from shardwise.engine.engine import Engine
from shardwise.engine.setup import Options, resolve
from shardwise.sched.request import SamplingParams
from tests.group import Group, even, layout_of
from tests.parity.reference import NEW, Reference, Score, compare, reference

LIMIT = 1e-4
"""The largest difference of two mean losses, in nats."""

CONTEXT = 512
END = "<|endoftext|>"
PROMPTS = ("Once upon a time", "One day, a little girl named Lily", "The dog was very")


def folder(data: Path) -> Path:
    return data / "weights" / "TinyStories-656K"


@pytest.fixture(scope="session")
def trained(data: Path) -> list[Reference]:
    tokenizer = Tokenizer.from_file(str(folder(data) / "tokenizer.json"))
    return [reference(folder(data), [1, *tokenizer.encode(text, add_special_tokens=False).ids]) for text in PROMPTS]


def check(engine: Engine, wanted: list[Reference]) -> None:
    params = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True)
    for want in wanted:
        assert [token.chosen.token for token in engine.generate(want.prompt, params)] == list(want.tokens)


DEGREES = [4, *(pytest.param(degree, marks=pytest.mark.slow) for degree in (6, 7, 8))]


@pytest.mark.parametrize("degree", DEGREES)
def test_real_processes(degree: int, data: Path, trained: list[Reference], figures: Callable[..., None]) -> None:
    with Engine(resolve(Options(str(folder(data)), tp=degree, dtype="float32", device="cpu")), "processes") as engine:
        check(engine, trained)
    figures("TinyStories, processes", tokens=NEW * len(trained), differing=0)


@pytest.mark.parametrize("shares", [(1.0,), (2.0, 1.0), (3.0, 1.0, 1.0), (1.0, 2.0, 3.0, 4.0, 5.0), even(8)], ids=str)
def test_threads(shares: tuple[float, ...], data: Path, trained: list[Reference]) -> None:
    with Engine(resolve(Options(str(folder(data)), shares=shares, dtype="float32", device="cpu")), "threads") as engine:
        check(engine, trained)


@pytest.mark.parametrize("shares", [even(1), even(3)], ids=str)
@pytest.mark.parametrize("name", ["phi3-longrope", "mistral-window", "qwen2-window"])
def test_the_engine_crosses_boundaries(
    name: str, shares: tuple[float, ...], checkpoint: Callable[[str], Path], references: Callable[[str], list[Reference]]
) -> None:
    """It starts anew where a longrope changes its angles, and reuses the pages that have left a window."""
    with Engine(resolve(Options(str(checkpoint(name)), shares=shares, dtype="float32", device="cpu")), "threads") as engine:
        check(engine, references(name))


# --- loss -------------------------------------------------------------------------------------------------------------


def stories(data: Path) -> list[list[int]]:
    """Each story alone, after a BOS, cut at the context."""
    tokenizer = Tokenizer.from_file(str(folder(data) / "tokenizer.json"))
    texts = (data / "text" / "tinystories-exl2.txt").read_text(encoding="utf-8").split(END)
    found = [[1, *tokenizer.encode(text.strip(), add_special_tokens=False).ids][:CONTEXT] for text in texts if text.strip()]
    # Similar lengths together: a batch is padded to its longest.
    return sorted(found, key=len)


def losses(logits: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
    """The negative log-likelihood of each token but the first; logits [tokens, vocabulary]."""
    return torch.nn.functional.cross_entropy(logits[:-1].double(), torch.tensor(tokens[1:]), reduction="none")


@pytest.fixture(scope="session")
def theirs(data: Path) -> Callable[[int], list[torch.Tensor]]:
    """transformers' losses of the first so many stories."""
    from transformers import AutoModelForCausalLM

    @cache
    def of(count: int) -> list[torch.Tensor]:
        model = AutoModelForCausalLM.from_pretrained(folder(data), dtype=torch.float32).eval()
        with torch.inference_mode():
            return [losses(model(torch.tensor([story])).logits[0], story) for story in picked(stories(data), count)]

    return of


def picked(found: list[list[int]], count: int) -> list[list[int]]:
    """`count` of them, spread over all lengths."""
    return found[:: max(1, len(found) // count)][:count]


def ours(data: Path, shares: tuple[float, ...], found: list[list[int]]) -> Iterator[torch.Tensor]:
    at_once = 8
    with Group(layout_of(folder(data), shares), folder(data), context=CONTEXT, chunk=CONTEXT, sequences=at_once) as group:
        for first in range(0, len(found), at_once):
            some = found[first : first + at_once]
            items = []
            for i, story in enumerate(some):
                sequence = group.request(i)
                sequence.tokens[:] = story
                items.append(sequence.take())
            parts = group.logits(*items).split([len(story) for story in some])
            yield from (losses(part, story) for part, story in zip(parts, some, strict=True))


ALL = 10**6

CASES = [
    pytest.param((3.0, 1.0, 1.0), 60, id="60 stories at 3:1:1"),
    pytest.param(even(1), ALL, id="all stories at 1", marks=pytest.mark.slow),
    pytest.param(even(5), ALL, id="all stories at 5", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("shares", "count"), CASES)
def test_loss(shares: tuple[float, ...], count: int, data: Path, theirs, figures: Callable[..., None]) -> None:
    wanted = theirs(count)
    found = list(ours(data, shares, picked(stories(data), count)))
    assert [len(loss) for loss in found] == [len(loss) for loss in wanted]
    mean, want = (torch.cat(each).mean().item() for each in (found, wanted))
    subject = f"loss, {len(found)} stories, {':'.join(f'{share:g}' for share in shares)}"
    figures(subject, ours=mean, theirs=want, apart=abs(mean - want), tokens=sum(map(len, found)))
    assert abs(mean - want) < LIMIT
    # Not only on average: each token's own loss.
    assert (torch.cat(found) - torch.cat(wanted)).abs().max() < 1e-2


def test_teacher_forced(data: Path, trained: list[Reference], figures: Callable[..., None]) -> None:
    """The trained model's logits at every position, prompt and decode, at uneven shares."""
    score = Score()
    with Group(layout_of(folder(data), (4.0, 2.0, 1.0, 1.0)), folder(data), sequences=len(trained)) as group:
        compare(group, trained, score)
    figures("parity TinyStories-656K", worst=score.worst, tokens=score.tokens, ties=score.ties)
    assert score.worst <= LIMIT and score.ties == 0
