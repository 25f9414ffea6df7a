"""Many requests at once give what each gives alone: mixed, preempted, shared, lost and done again."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from shardwise.engine.process_ranks import ProcessRanks
from shardwise.engine.setup import Options, Setup, resolve
from shardwise.errors import RankLost
from shardwise.sched.request import SamplingParams
from shardwise.spec.layout import PAGE_TOKENS
from tests.engine.drive import Ask, Drive

REQUESTS = 64
VOCABULARY = range(3, 96)


def asks(count: int, seed: int, *, penalties: bool = True) -> list[Ask]:
    """Mixed lengths, greedy and drawn, one to three choices, some with penalties, some that share a beginning."""
    chance = random.Random(seed)
    common = [chance.choice(VOCABULARY) for _ in range(40)]
    found = []
    for index in range(count):
        shared = common[: chance.choice((0, 0, 20, 40))]
        own = [chance.choice(VOCABULARY) for _ in range(chance.choice((1, 3, 9, 17, 40, 60)))]
        found.append(
            Ask(
                tuple(shared + own)[:96],
                SamplingParams(
                    n=chance.choice((1, 1, 2, 3)),
                    temperature=chance.choice((0.0, 0.7, 1.3)),
                    top_p=chance.choice((1.0, 0.9)),
                    top_k=chance.choice((0, 0, 7)),
                    min_p=chance.choice((0.0, 0.0, 0.05)),
                    presence_penalty=chance.choice((0.0, 0.0, 0.5)) * penalties,
                    repetition_penalty=chance.choice((1.0, 1.0, 1.2)) if penalties else 1.0,
                    seed=index,
                    max_tokens=chance.choice((1, 5, 16, 30)),
                ),
                ends=(chance.choice(VOCABULARY),) if chance.random() < 0.3 else (),
            )
        )
    return found


def setup_of(folder: Path, tp: int, **changes: object) -> Setup:
    return resolve(Options(str(folder), tp=tp, dtype="float32", device="cpu", threads=1, **changes))  # type: ignore[arg-type]


def fewer_pages(setup: Setup, tokens: int) -> Setup:
    """The same with pages for `tokens` tokens in each cache group."""
    return replace(setup, pages=tuple(1 + -(-tokens // PAGE_TOKENS) for _ in setup.pages))


def told(drive: Drive, numbers: list[int], wanted: list[Ask]) -> list[list[list[int]]]:
    """The tokens of each choice of each request; each must have ended once, without an error."""
    for number in numbers:
        assert [ended.error for ended in drive.told[number].ended] == [None], number
    return [
        [drive.told[number].tokens(choice) for choice in range(ask.params.n)]
        for number, ask in zip(numbers, wanted, strict=True)
    ]


def check(setup: Setup, wanted: list[Ask], seed: int, *, lossy: bool = False) -> Drive:
    """All of them at once against each of them alone."""
    with Drive(setup) as drive:
        numbers = drive.arriving(wanted, random.Random(seed), lossy=lossy)
        together = told(drive, numbers, wanted)
    with Drive(replace(setup, limits=replace(setup.limits, prefixes=False))) as single:
        for index, ask in enumerate(wanted):
            one = single.alone(ask, index)
            assert together[index] == [one.tokens(choice) for choice in range(ask.params.n)], f"request {index}: {ask}"
    return drive


@pytest.mark.parametrize("tp", [1, 2, 3])
def test_together_as_alone(checkpoint: Callable[[str], Path], figures: Callable[..., None], tp: int) -> None:
    setup = setup_of(checkpoint("llama"), tp)
    drive = check(setup, asks(REQUESTS, tp), tp)
    figures("many requests", tokens=sum(len(t.tokens(c)) for t in drive.told.values() for c in range(3)), steps=drive.steps)
    assert drive.steps < 400


@pytest.mark.parametrize("tp", [1, 2, 3])
def test_with_few_pages(checkpoint: Callable[[str], Path], figures: Callable[..., None], tp: int) -> None:
    """So few that sequences must give way to each other."""
    setup = fewer_pages(setup_of(checkpoint("llama"), tp), 400)
    drive = check(setup, asks(REQUESTS, 10 + tp), tp)
    figures("many requests, few pages", preempted=drive.preempted)
    assert drive.preempted > 10


@pytest.mark.parametrize("tp", [1, 3])
def test_steps_are_lost(checkpoint: Callable[[str], Path], figures: Callable[..., None], tp: int) -> None:
    setup = fewer_pages(setup_of(checkpoint("llama"), tp), 600)
    drive = check(setup, asks(REQUESTS, 20 + tp, penalties=False), tp, lossy=True)
    figures("many requests, lost steps", lost=drive.dropped)
    assert drive.dropped > 5


@pytest.mark.parametrize("name", ["mistral-window", "qwen2-window", "phi3-longrope", "llama-dynamic", "gemma3", "deepseek-v3"])
def test_families_whose_cache_is_special(checkpoint: Callable[[str], Path], name: str) -> None:
    """Windows, latents, and angles that change with length; few pages, and lost steps."""
    setup = fewer_pages(setup_of(checkpoint(name), 2), 480)
    limit = setup.context
    wanted = [replace(ask, prompt=ask.prompt[: limit - 31]) for ask in asks(24, 5, penalties=False)]
    drive = check(setup, wanted, 1, lossy=True)
    assert drive.preempted > 0


def test_small_steps_and_a_full_house(checkpoint: Callable[[str], Path]) -> None:
    """Chunks of any size, and hardly more places than choices."""
    setup = setup_of(checkpoint("llama"), 2, max_num_batched_tokens=13, max_num_seqs=4)
    check(setup, asks(24, 3), 3)


def test_prefixes_are_found(checkpoint: Callable[[str], Path]) -> None:
    """What is shared is not computed again: whole pages of it, and at least one token of each prompt is."""
    setup = setup_of(checkpoint("llama"), 2)
    prompt = tuple(random.Random(0).choices(VOCABULARY, k=70))
    params = SamplingParams(temperature=0.0, max_tokens=4)
    with Drive(setup) as drive:
        first = drive.alone(Ask(prompt, params))
        again = drive.alone(Ask(prompt, params))
        longer = drive.alone(Ask((*prompt[:64], 5, 6), params))
        whole = drive.alone(Ask(prompt[:64], params))
        other = drive.alone(Ask(prompt, params, tenant="another"))
    counted = [(t.ended[0].prefilled, t.ended[0].cached) for t in (first, again, longer, whole, other)]
    assert counted == [(70, 0), (6, 64), (2, 64), (16, 48), (70, 0)]
    assert first.tokens() == again.tokens() == other.tokens()


def test_scores_of_a_prompt(checkpoint: Callable[[str], Path]) -> None:
    """The log-probabilities of a prompt are those of its tokens one by one, whatever else runs, in chunks of any size."""
    chance = random.Random(1)
    wanted = [
        Ask(tuple(chance.choices(VOCABULARY, k=k)), SamplingParams(prompt_logprobs=2, max_tokens=m, temperature=0.0))
        for k, m in ((50, 0), (1, 0), (2, 0), (33, 3), (1, 2))
    ]
    setup = setup_of(checkpoint("llama"), 3)
    with Drive(setup) as whole, Drive(setup_of(checkpoint("llama"), 1, max_num_batched_tokens=7, max_num_seqs=3)) as parts:
        numbers = whole.arriving(wanted, chance), parts.arriving(wanted, chance)
        for ask, a, b in zip(wanted, *numbers, strict=True):
            one, two = whole.told[a], parts.told[b]
            assert [c.token for c in one.scores] == list(ask.prompt[1:]) == [c.token for c in two.scores]
            assert [c.logprob for c in one.scores] == pytest.approx([c.logprob for c in two.scores], abs=1e-4)
            assert [len(c.top) for c in one.scores] == [2] * (len(ask.prompt) - 1)
            assert len(one.tokens()) == ask.params.max_tokens and one.tokens() == two.tokens()


def test_one_choice_ends_and_the_others_go_on(checkpoint: Callable[[str], Path]) -> None:
    setup = setup_of(checkpoint("llama"), 2)
    ask = Ask((5, 9, 11), SamplingParams(n=3, temperature=1.0, max_tokens=12, seed=4))
    with Drive(setup) as drive:
        alone = drive.alone(ask)
        number = drive.add(ask)
        while len(drive.told[number].tokens(1)) < 3:
            drive.turn()
        drive.core.finish(number, 1)
        drive.finish()
    told_now = drive.told[number]
    assert [told_now.tokens(c) for c in (0, 2)] == [alone.tokens(c) for c in (0, 2)]
    assert 3 <= len(told_now.tokens(1)) < 12 and len(told_now.ended) == 1


@pytest.mark.parametrize("flight", [2, 3])
def test_one_choice_ends_while_its_next_draw_waits_for_it(checkpoint: Callable[[str], Path], flight: int) -> None:
    """A penalty makes a draw wait for the token before; that token never comes once the choice has ended."""
    setup = setup_of(checkpoint("llama"), 2)
    setup = replace(setup, limits=replace(setup.limits, flight=flight, ahead=flight - 1))
    ask = Ask((5, 9, 11), SamplingParams(n=2, temperature=1.0, presence_penalty=1.0, max_tokens=12, seed=4))
    with Drive(setup) as drive:
        alone = drive.alone(ask)
        number = drive.add(ask)
        while not drive.told[number].tokens(1):
            drive.turn()
        drive.core.issue()
        assert drive.core.unsampled
        drive.core.finish(number, 1)
        drive.turn()
        assert not drive.core.unsampled
        drive.finish()
    told_now = drive.told[number]
    assert told_now.tokens(0) == alone.tokens(0) and told_now.ended[0].error is None


def test_ranks_that_died_are_replaced(checkpoint: Callable[[str], Path]) -> None:
    """Real processes: one is killed while requests run; with new ones, which know nothing, every request goes on as if
    nothing had been."""
    setup = setup_of(checkpoint("llama"), 3)
    wanted = asks(12, 7)
    with Drive(setup, ProcessRanks) as drive:
        numbers = [drive.add(ask, index) for index, ask in enumerate(wanted)]
        for _ in range(6):
            drive.turn()
        assert isinstance(drive.ranks, ProcessRanks)
        drive.ranks.processes[1].kill()
        with pytest.raises(RankLost, match="rank 1"):
            drive.finish()
        drive.restart()
        drive.finish()
        together = told(drive, numbers, wanted)
    with Drive(setup) as single:
        for index, ask in enumerate(wanted):
            one = single.alone(ask, index)
            assert together[index] == [one.tokens(choice) for choice in range(ask.params.n)]
