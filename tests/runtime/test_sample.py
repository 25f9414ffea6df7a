"""Sampling: the right distribution, the same token wherever a row stands, and one bad row harms no other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardwise.runtime.sample import MASK, gumbel, key, sample
from shardwise.sched.step import Draw, Item, Result

GOLDEN = 0x9E3779B97F4A7C15
CPU = torch.device("cpu")
FREE = Draw(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, seed=1)


def item(draw: Draw | None, position: int = 1, request: int = 0) -> Item:
    """One that draws the token at `position`."""
    return Item(request, (0,), position - 1, position, (), draw)


def draw_one(logits: torch.Tensor, draw: Draw, position: int = 1) -> Result:
    [result] = sample(logits[None], [item(draw, position)])
    return result


def tokens(results: Sequence[Result]) -> list[int | None]:
    return [result.chosen.token if result.chosen else None for result in results]


def random_logits(rows: int, vocabulary: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 2


# --- the noise --------------------------------------------------------------------------------------------------------


def mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def unmix(x: int) -> int:
    """What `mix` makes `x` of: it is a bijection of 64 bits."""

    def unshift(x: int, bits: int) -> int:
        found = x
        for _ in range(64 // bits + 1):
            found = x ^ (found >> bits)
        return found

    x = unshift(x, 31) * pow(0x94D049BB133111EB, -1, 2**64) & MASK
    x = unshift(x, 27) * pow(0xBF58476D1CE4E5B9, -1, 2**64) & MASK
    return unshift(x, 30)


def seed_of(start: int, choice: int, position: int) -> int:
    """The seed whose key for that choice and position is `start`."""
    state = start & MASK
    for value in (position, choice, 0):
        state = (unmix(state) - value - GOLDEN) & MASK
    return state


def noise(start: int, token: int) -> float:
    """Gumbel noise in plain Python."""
    hashed = mix((start + token * GOLDEN) & MASK)
    return -math.log(-math.log(((hashed >> 12) + 0.5) / 2**52))


@given(st.integers(0, MASK), st.integers(0, 200_000))
def test_noise_agrees_with_plain_python(start: int, token: int) -> None:
    # A shifted start stands for a far token, so that no huge tensor is needed.
    [[found]] = gumbel([(start + token * GOLDEN) & MASK], 1, CPU).tolist()
    assert found == pytest.approx(noise(start, token), rel=1e-6, abs=1e-6)


def test_noise_of_a_row_is_that_of_its_tokens() -> None:
    start = key(3, 0, 9)
    [row] = gumbel([start], 64, CPU).tolist()
    assert row == pytest.approx([noise(start, token) for token in range(64)], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("hashed", [0, 1, 2**12, MASK, MASK - 1, MASK - 2**12, 2**63, 2**63 - 1])
def test_extreme_hashes_give_finite_noise(hashed: int) -> None:
    start = unmix(hashed)
    assert mix(start) == hashed
    [[found]] = gumbel([start], 1, CPU).tolist()
    assert math.isfinite(found)
    assert -4 < found < 38


def test_keys_differ() -> None:
    triples = [(seed, choice, position) for seed in (0, 1, 2, 2**63 - 1) for choice in range(4) for position in range(100)]
    assert len({key(*triple) for triple in triples}) == len(triples)
    assert all(0 <= key(*triple) <= MASK for triple in triples)


def test_noise_is_gumbel() -> None:
    found = gumbel([key(5, 0, i) for i in range(200)], 1000, CPU).double().flatten()
    for level in (-1.0, 0.0, 0.5, 1.0, 3.0):
        share = math.exp(-math.exp(-level))
        spread = math.sqrt(share * (1 - share) / len(found))
        assert (found <= level).double().mean().item() == pytest.approx(share, abs=5 * spread)


# --- distribution -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "draw",
    [FREE, replace(FREE, temperature=0.5), replace(FREE, temperature=3.0), replace(FREE, top_k=4), replace(FREE, top_p=0.8)],
    ids=["plain", "cold", "hot", "top_k", "top_p"],
)
@pytest.mark.parametrize("across", ["positions", "seeds", "choices"])
def test_chi_square(draw: Draw, across: str) -> None:
    """6 000 draws from 8 tokens, where only the counter moves."""
    logits, count = torch.tensor([0.0, 1.0, -1.0, 0.5, 2.0, -2.0, 1.5, 0.2]), 6_000
    drawn = {
        "positions": lambda i: item(draw, 1 + i),
        "seeds": lambda i: item(replace(draw, seed=i)),
        "choices": lambda i: item(replace(draw, choice=i)),
    }[across]
    chosen = torch.tensor(tokens(sample(logits.expand(count, -1), [drawn(i) for i in range(count)])))
    probabilities = reference(logits, draw)
    seen = torch.bincount(chosen, minlength=8)
    held = probabilities > 0
    assert seen[~held].sum() == 0
    wanted = probabilities[held] * count
    statistic = ((seen[held] - wanted) ** 2 / wanted).sum().item()
    # The 0.9999 quantile of chi-square with 7, 3 (top_k 4) and at most 4 degrees of freedom is below 30.
    assert statistic < 30


def reference(logits: torch.Tensor, draw: Draw) -> torch.Tensor:
    """The distribution, token by token in Python: temperature, then min_p, then top_k, then top_p."""
    scaled = [value / draw.temperature for value in logits.tolist()]
    top = max(scaled)
    weights = [math.exp(value - top) for value in scaled]
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    kept = [i for i in order if weights[i] >= draw.min_p * (1 - 1e-6)]
    kept = kept[: draw.top_k] if draw.top_k > 0 else kept
    total, nucleus, running = sum(weights[i] for i in kept), [], 0.0
    for i in kept:
        if nucleus and running >= draw.top_p and draw.top_p < 1:
            break
        nucleus.append(i)
        running += weights[i] / total
    found = torch.zeros(len(weights), dtype=torch.float64)
    for i in nucleus:
        found[i] = weights[i]
    return found / found.sum()


def nearly(values: Sequence[float], bound: float) -> bool:
    return any(abs(value - bound) < 1e-4 for value in values)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(-48, 48), min_size=2, max_size=12, unique=True),
    st.sampled_from([0.3, 1.0, 2.0]),
    st.integers(-1, 14),
    st.floats(0.05, 1.0),
    st.floats(0.0, 0.9),
)
def test_narrowing_is_the_plain_rule(eighths: list[int], temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    """Every token that may be drawn is drawn in 400 tries or is unlikely, and none that may not."""
    logits = torch.tensor(eighths) / 8
    draw = replace(FREE, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    loose = reference(logits, replace(draw, top_p=1.0))
    sums = loose.sort(descending=True).values.cumsum(0).tolist()
    weights = (logits.double() / temperature).softmax(0)
    if nearly(sums, top_p) or nearly((weights / weights.max()).tolist(), min_p):
        return  # rounding decides
    wanted = reference(logits, draw)
    seen = torch.zeros(len(eighths), dtype=torch.bool)
    seen[tokens(sample(logits.expand(400, -1), [item(draw, i) for i in range(1, 401)]))] = True
    assert not (seen & (wanted == 0)).any()
    assert seen[wanted > 0.05].all()


def test_equal_logits_under_top_k_keep_the_first() -> None:
    results = sample(torch.zeros(300, 6), [item(replace(FREE, top_k=2), i) for i in range(1, 301)])
    assert set(tokens(results)) == {0, 1}


# --- rows -------------------------------------------------------------------------------------------------------------

DRAWS = [
    FREE,
    replace(FREE, temperature=0.0),
    replace(FREE, temperature=0.7, top_k=5, seed=9),
    replace(FREE, top_p=0.3, choice=2),
    replace(FREE, min_p=0.2, temperature=1.5),
    replace(FREE, logprobs=3, barred=(1, 2)),
    replace(FREE, temperature=1e-30, seed=4),
]


def test_a_row_is_the_same_in_any_batch() -> None:
    logits = random_logits(len(DRAWS), 50)
    items = [item(draw, 3 + i, request=i) for i, draw in enumerate(DRAWS)]
    alone = [sample(row[None], [one])[0] for row, one in zip(logits, items, strict=True)]
    assert sample(logits, items) == tuple(alone)
    turned = list(reversed(range(len(items))))
    assert sample(logits[turned], [items[i] for i in turned]) == tuple(alone[i] for i in turned)
    doubled = sample(logits.repeat(2, 1), items * 2)
    assert doubled == tuple(alone * 2)


def test_a_neighbour_with_top_p_takes_nothing_from_a_row_without() -> None:
    """Rounded to float32, the probabilities reach 1 before the last token; this seed draws the last one all the same."""
    draw = replace(FREE, seed=seed_of(unmix(MASK) - 3 * GOLDEN, choice=0, position=1))
    logits = torch.tensor([[0.0, -20.0, -21.0, -24.0]] * 2)
    assert tokens([draw_one(logits[0], draw)]) == [3]
    assert tokens(sample(logits, [item(draw), item(replace(FREE, top_p=0.5))])) == [3, 0]


def test_items_that_draw_nothing_have_no_row() -> None:
    logits = random_logits(2, 9)
    items = [item(None), item(DRAWS[1], request=5), item(None), item(DRAWS[1], request=6)]
    found = sample(logits, items)
    assert [result.request for result in found] == [5, 6]
    assert tokens(found) == logits.argmax(-1).tolist()
    assert sample(torch.empty(0, 9), [item(None)]) == ()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_row_harms_no_other(bad: float) -> None:
    logits = random_logits(len(DRAWS), 40)
    items = [item(draw, 2, request=i) for i, draw in enumerate(DRAWS)]
    whole = sample(logits, items)
    for row in range(len(DRAWS)):
        broken = logits.clone()
        broken[row, 7] = bad
        found = sample(broken, items)
        assert found[row].chosen is None and "finite" in (found[row].error or "")
        assert [r for i, r in enumerate(found) if i != row] == [r for i, r in enumerate(whole) if i != row]


# --- greedy, log-probabilities, extremes ------------------------------------------------------------------------------


def test_greedy_is_the_first_of_the_largest() -> None:
    greedy = replace(FREE, temperature=0.0)
    assert tokens([draw_one(torch.tensor([1.0, 5.0, 5.0, 2.0]), greedy)]) == [1]
    assert tokens([draw_one(torch.tensor([1.0, 5.0, 5.0, 2.0]), replace(greedy, barred=(1,)))]) == [2]


@pytest.mark.parametrize("temperature", [1e-45, 1e-40, 1e-30, 1e-6])
def test_hardly_any_temperature_is_greedy(temperature: float) -> None:
    """Logits over so little would be many infinities, and the first of them would win."""
    logits = torch.tensor([10.0, 20.0, 30.0, 29.0])
    for draw in (FREE, replace(FREE, top_p=0.9), replace(FREE, min_p=0.1), replace(FREE, top_k=3)):
        assert tokens([draw_one(logits, replace(draw, temperature=temperature), i) for i in range(1, 30)]) == [2] * 29


def test_barred_tokens_are_never_drawn() -> None:
    draw = replace(FREE, barred=(0, 3))
    found = set(tokens(sample(torch.zeros(200, 5), [item(draw, i) for i in range(1, 201)])))
    assert found == {1, 2, 4}


def test_log_probabilities_are_those_of_the_model() -> None:
    """Before temperature and narrowing, whatever was chosen, and the best first."""
    logits = random_logits(1, 30)[0]
    wanted = logits.double().log_softmax(0)
    best = wanted.topk(5)
    for draw in (FREE, replace(FREE, temperature=0.2, top_k=2), replace(FREE, temperature=0.0)):
        chosen = draw_one(logits, replace(draw, logprobs=5)).chosen
        assert chosen is not None
        assert chosen.logprob == pytest.approx(wanted[chosen.token].item(), abs=1e-5)
        assert [token for token, _ in chosen.top] == best.indices.tolist()
        assert [value for _, value in chosen.top] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert draw_one(logits, FREE).chosen.top == ()
    assert draw_one(logits, replace(FREE, logprobs=0)).chosen.top == ()


def test_more_log_probabilities_than_tokens() -> None:
    chosen = draw_one(torch.tensor([1.0, 2.0]), replace(FREE, logprobs=20)).chosen
    assert chosen is not None and [token for token, _ in chosen.top] == [1, 0]


def test_the_position_is_that_of_the_new_token() -> None:
    """However its history was cut into steps."""
    logits = random_logits(1, 1000)
    whole = Item(0, tuple(range(10)), 0, 10, (), FREE)
    last = Item(0, (9,), 9, 10, (), FREE)
    assert tokens(sample(logits, [whole])) == tokens(sample(logits, [last]))
    assert len(set(tokens([draw_one(logits[0], FREE, i) for i in range(1, 30)]))) > 10
