"""Sampling: the right distribution, the token that all logits would give at any degree, and one bad row harms no other."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardwise.runtime.kinds import FEW, MANY, beside, traffic_rows
from shardwise.sched.step import Draw, Edit, Item
from shardwise.spec import traffic
from tests.group import even
from tests.runtime import full
from tests.runtime.full import GOLDEN, MASK, Undecided
from tests.runtime.sampling import Sampled, item, only, sample, tokens
from tests.runtime.test_noise import seed_of, unmix

FREE = Draw(0, temperature=1.0, seed=1)
CUTS = [even(1), even(2), even(3), even(5), (3.0, 1.0, 1.0), (1.0, 1e-6, 1.0), (1e-6, 1.0, 1e-6, 1.0, 1e-6)]


def random_logits(rows: int, vocabulary: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 2


# --- against the definition -------------------------------------------------------------------------------------------

ROWS = st.lists(st.integers(-24, 24), min_size=2, max_size=24)  # eighths: many are equal


@st.composite
def edits(draw: st.DrawFn, vocabulary: int) -> Edit:
    """Some of the ids in each of its parts; one at least is left."""
    ids = st.lists(st.integers(0, vocabulary - 1), unique=True, max_size=4).map(tuple)
    numbers = st.sampled_from([-2.0, -0.3, 0.4, 1.5])
    barred = draw(ids)
    left = [i for i in range(vocabulary) if i not in barred]
    allowed = draw(st.none() | st.lists(st.sampled_from(left or [0]), unique=True, min_size=1).map(tuple))
    return Edit(
        draw(st.sampled_from([1.0, 1.3, 0.7])),
        draw(numbers),
        draw(numbers),
        draw(ids),
        tuple((i, draw(st.integers(1, 9))) for i in draw(ids)),
        tuple((i, draw(numbers)) for i in draw(ids)),
        barred if left else (),
        allowed,
    )


@st.composite
def draws(draw: st.DrawFn, vocabulary: int, sequence: int) -> Draw:
    return Draw(
        sequence,
        draw(st.sampled_from([0.0, 1e-30, 0.3, 1.0, 3.0])),
        draw(st.integers(0, 2**63 - 1)),
        draw(st.integers(0, 3)),
        draw(st.sampled_from([1.0, 1.0, 0.1, 0.5, 0.9, 0.99])),
        draw(st.sampled_from([0, 0, -1, 1, 2, 5, vocabulary, 2 * vocabulary])),
        draw(st.sampled_from([0.0, 0.0, 0.05, 0.5, 1.0])),
        draw(st.sampled_from([None, None, 0, 3])),
        draw(st.none() | edits(vocabulary)),
        draw(st.just(()) | st.lists(st.integers(0, vocabulary - 1), unique=True, max_size=5).map(tuple)),
    )


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_every_row_is_drawn_as_defined_in_any_company_at_any_degree(data: st.DataObject) -> None:
    vocabulary = data.draw(st.integers(2, 24))
    count = data.draw(st.integers(1, 6))
    eighths = st.lists(st.integers(-24, 24), min_size=vocabulary, max_size=vocabulary)
    logits = torch.tensor([data.draw(eighths) for _ in range(count)], dtype=torch.float32) / 8
    asked = [data.draw(draws(vocabulary, sequence)) for sequence in range(count)]
    positions = [data.draw(st.integers(1, 10**6)) for _ in range(count)]
    found = sample(logits, asked, data.draw(st.sampled_from(CUTS)), positions)
    for row, draw, position, result in zip(logits, asked, positions, found, strict=True):
        assert result.sequence == draw.sequence and result.error is None
        chosen = only(result)
        try:
            assert chosen.token == full.choose(row, draw, position)
        except Undecided:
            assert full.edited(row, draw.edit)[chosen.token] > -torch.inf
        if draw.logprobs is None:
            assert (chosen.rank, chosen.logprob, chosen.top) == (0, 0.0, ())
        else:
            wanted = full.scored(row, chosen.token, draw.logprobs, draw.named)
            assert chosen.rank == wanted.rank and chosen.logprob == pytest.approx(wanted.logprob, abs=1e-5)
            assert [i for i, _ in chosen.top] == [i for i, _ in wanted.top]
            assert [x for _, x in chosen.top] == pytest.approx([x for _, x in wanted.top], abs=1e-5)


MIXED = [
    FREE,
    replace(FREE, temperature=0.0),
    replace(FREE, temperature=0.7, top_k=5, seed=9),
    replace(FREE, top_p=0.3, choice=2),
    replace(FREE, top_p=0.97, temperature=2.0),
    replace(FREE, min_p=0.2, temperature=1.5),
    replace(FREE, logprobs=3, edit=Edit(barred=(1, 2))),
    replace(FREE, temperature=1e-30, seed=4),
    replace(FREE, top_k=200, top_p=0.99, temperature=3.0),
    replace(FREE, temperature=0.0, logprobs=2, edit=Edit(repetition=1.5, seen=(3, 4, 5), allowed=(3, 4, 5, 6))),
    replace(FREE, top_k=MANY + 7, temperature=2.0),
    replace(FREE, logprobs=0, named=(7, 0, 3), edit=Edit(barred=(7,))),
    replace(FREE, logprobs=0, named=(8,), temperature=0.0),
]
MIXED = [replace(draw, sequence=i) for i, draw in enumerate(MIXED)]


@pytest.mark.parametrize("rounded", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shares", CUTS, ids=str)
def test_a_large_vocabulary(shares: tuple[float, ...], rounded: bool) -> None:
    """More ids than candidates; as bfloat16 many of them are equal at every bound."""
    logits = random_logits(len(MIXED), 4000)
    if rounded:
        logits = logits.bfloat16().float()
    found = sample(logits, MIXED, shares, range(5, 5 + len(MIXED)))
    assert tokens(found) == [full.choose(row, draw, 5 + i) for i, (row, draw) in enumerate(zip(logits, MIXED, strict=True))]


def test_a_row_is_the_same_in_any_batch() -> None:
    logits = random_logits(len(MIXED), 50)
    places = list(range(3, 3 + len(MIXED)))
    alone = [sample(row[None], [draw], positions=[at])[0] for row, draw, at in zip(logits, MIXED, places, strict=True)]
    assert sample(logits, MIXED, positions=places) == tuple(alone)
    turned = list(reversed(range(len(MIXED))))
    found = sample(logits[turned], [MIXED[i] for i in turned], even(2), [places[i] for i in turned])
    assert tokens(found) == tokens([alone[i] for i in turned])
    doubled = sample(logits.repeat(2, 1), MIXED * 2, positions=places * 2)
    assert doubled == tuple(alone * 2)


def test_a_top_k_of_all_is_none() -> None:
    """However a token is found, it has the same noise."""
    logits = random_logits(200, 40)
    want = tokens(sample(logits, [FREE] * 200, positions=range(1, 201)))
    for draw in (
        replace(FREE, top_k=40),
        replace(FREE, top_p=1 - 1e-9),
        replace(FREE, min_p=1e-30),
        replace(FREE, top_k=39, top_p=1 - 1e-9),
    ):
        found = tokens(sample(logits, [draw] * 200, (3.0, 1.0, 1.0), range(1, 201)))
        assert sum(a != b for a, b in zip(found, want, strict=True)) <= (1 if draw.top_k == 39 else 0)


# --- distribution -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "draw",
    [
        FREE,
        replace(FREE, temperature=0.5),
        replace(FREE, temperature=3.0),
        replace(FREE, top_k=4),
        replace(FREE, top_p=0.8),
        replace(FREE, min_p=0.1),
    ],
    ids=["plain", "cold", "hot", "top_k", "top_p", "min_p"],
)
@pytest.mark.parametrize("across", ["positions", "seeds", "choices"])
def test_chi_square(draw: Draw, across: str) -> None:
    """6 000 draws from 8 tokens over three ranks, where only the counter moves."""
    logits, count = torch.tensor([0.0, 1.0, -1.0, 0.5, 2.0, -2.0, 1.5, 0.2]), 6_000
    places = range(1, 1 + count) if across == "positions" else [1] * count
    changes = {"positions": lambda _: {}, "seeds": lambda i: {"seed": i}, "choices": lambda i: {"choice": i}}[across]
    asked = [replace(draw, **changes(i)) for i in range(count)]
    chosen = torch.tensor(tokens(sample(logits.expand(count, -1), asked, (3.0, 1.0, 1.0), places)))
    probabilities = torch.zeros(8, dtype=torch.float64)
    kept = full.left(logits.tolist(), draw)
    probabilities[kept] = (logits.double() / draw.temperature)[kept].softmax(0)
    seen = torch.bincount(chosen, minlength=8)
    held = probabilities > 0
    assert seen[~held].sum() == 0
    wanted = probabilities[held] * count
    statistic = ((seen[held] - wanted) ** 2 / wanted).sum().item()
    # The 0.9999 quantile of chi-square with 7 degrees of freedom is below 30, and lower with fewer.
    assert statistic < 30


def test_a_neighbour_with_top_p_takes_nothing_from_a_row_without() -> None:
    """Rounded to float32, the probabilities reach 1 before the last token; this seed draws the last one all the same."""
    draw = replace(FREE, seed=seed_of(unmix(MASK) - 3 * GOLDEN, choice=0, position=1))
    logits = torch.tensor([[0.0, -20.0, -21.0, -24.0]] * 2)
    assert tokens(sample(logits[:1], [draw])) == [3]
    assert tokens(sample(logits, [draw, replace(FREE, top_p=0.5)])) == [3, 0]


def test_equal_logits_under_top_k_keep_the_first() -> None:
    results = sample(torch.zeros(300, 6), [replace(FREE, top_k=2)] * 300, even(3), range(1, 301))
    assert set(tokens(results)) == {0, 1}


@pytest.mark.parametrize("shares", CUTS, ids=str)
def test_greedy_is_the_first_of_the_largest(shares: tuple[float, ...]) -> None:
    greedy = replace(FREE, temperature=0.0)
    logits = torch.tensor([[1.0, 5.0, 5.0, 2.0, -0.0, 0.0, 5.0, 5.0]])
    assert tokens(sample(logits, [greedy], shares)) == [1]
    assert tokens(sample(logits, [replace(greedy, edit=Edit(barred=(1, 2)))], shares)) == [6]
    assert tokens(sample(torch.tensor([[-1.0, -0.0, 0.0, -2.0]]), [greedy], shares)) == [1]
    assert tokens(sample(torch.tensor([[-1.0, 0.0, -0.0, -2.0]]), [replace(FREE, top_k=1)], shares)) == [1]


@pytest.mark.parametrize("temperature", [1e-45, 1e-40, 1e-30, 1e-6])
def test_hardly_any_temperature_is_greedy(temperature: float) -> None:
    """Logits over so little would be many infinities, and the first of them would win."""
    logits = torch.tensor([[10.0, 20.0, 30.0, 29.0]]).expand(29, -1)
    for draw in (FREE, replace(FREE, top_p=0.9), replace(FREE, min_p=0.1), replace(FREE, top_k=3)):
        cold = [replace(draw, temperature=temperature)] * 29
        assert tokens(sample(logits, cold, positions=range(1, 30))) == [2] * 29


# --- what is gathered -------------------------------------------------------------------------------------------------


def calls_of(logits: torch.Tensor, asked: list[Draw], *, uncertain: tuple[int, ...]) -> None:
    """The calls are those that are predicted, with so many rows whose nucleus was too large for each offer."""
    items = [item(draw) for draw in asked]
    found = Sampled(logits, items, asked, (3.0, 1.0, 1.0))
    assert found.uncertain == uncertain
    rows = traffic_rows(items, asked, logits.shape[1], uncertain)
    model = found.layout.model
    assert (
        found.calls == list(traffic.of(model, found.layout, 1, rows))[len(traffic.of(model, found.layout, 1, traffic.Rows())) :]
    )
    wanted = [full.choose(row, draw, 1) for row, draw in zip(logits, asked, strict=True)]
    assert tokens(found.results) == wanted == found.tokens.tolist()


def test_logits_are_gathered_only_where_the_candidates_are_not_enough() -> None:
    nucleus = replace(FREE, top_p=0.9003)
    flat, wide, steep = torch.zeros(1, 3000), torch.linspace(20, 0, 3000)[None], torch.linspace(300, 0, 3000)[None]
    calls_of(steep, [nucleus], uncertain=(0, 0))
    calls_of(wide, [nucleus], uncertain=(1, 0))
    calls_of(flat, [nucleus], uncertain=(1, 1))
    calls_of(flat, [replace(nucleus, min_p=1.0, top_p=0.0101)], uncertain=(0, 0))  # 31 of 3 000
    calls_of(flat, [replace(nucleus, top_k=50)], uncertain=(0, 0))
    four = torch.cat((steep, flat, wide, flat))
    calls_of(four, [nucleus, FREE, nucleus, nucleus], uncertain=(2, 1))
    calls_of(four, [nucleus, FREE, replace(nucleus, top_k=FEW + 1), nucleus], uncertain=(1,))
    calls_of(flat, [replace(FREE, min_p=0.5)], uncertain=())
    calls_of(flat[:, :100], [nucleus], uncertain=(0,))  # all there are


def test_the_edge_of_the_candidates() -> None:
    """Exactly as many equal ids in the nucleus as each rank offers, and one more."""
    logits = torch.full((1, 3000), -60.0)
    for count, uncertain in ((FEW, (0, 0)), (FEW + 1, (1, 0)), (MANY, (1, 0)), (MANY + 1, (1, 1))):
        logits[0, 1000 : 1000 + count] = 1.0
        calls_of(logits, [replace(FREE, top_p=0.9999)], uncertain=uncertain)


def test_a_top_k_beyond_the_candidates_gathers_at_once() -> None:
    logits = random_logits(20, MANY * 2)
    calls_of(logits, [replace(FREE, top_k=MANY + 1, logprobs=0, seed=i) for i in range(20)], uncertain=())
    calls_of(logits[:3], [replace(FREE, top_k=MANY, top_p=0.999, temperature=9.0, seed=i) for i in range(3)], uncertain=(0,))


def test_named_ids_travel_with_the_likeliest() -> None:
    """As many of either as the most that a row wants, in one call."""
    logits = random_logits(70, 300)
    kinds = [replace(FREE, logprobs=4), replace(FREE, logprobs=0, named=(5, 299)), replace(FREE, logprobs=9, named=(1,)), FREE]
    asked = [kinds[i % 4] for i in range(70)]
    calls_of(logits, asked, uncertain=())
    items = [item(draw) for draw in asked]
    assert traffic_rows(items, asked, 300).asked == (((53, 4 + 2)),)


def test_greedy_rows_gather_two_numbers_a_rank() -> None:
    found = Sampled(random_logits(4, 500), [item(FREE)] * 4, [replace(FREE, temperature=0.0)] * 4, even(5))
    assert [(call.op, call.site, call.shape) for call in found.calls] == [("all_gather", "draw_best", (4, 10))]


# --- bad rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shares", [even(1), (3.0, 1.0, 1.0)], ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_row_harms_no_other(bad: float, shares: tuple[float, ...]) -> None:
    logits = random_logits(len(MIXED), 40)
    whole = sample(logits, MIXED, shares)
    for row in range(len(MIXED)):
        for column in (0, 39):
            broken = logits.clone()
            broken[row, column] = bad
            found = sample(broken, MIXED, shares)
            assert found[row].tokens == () and "finite" in (found[row].error or "")
            assert [r for i, r in enumerate(found) if i != row] == [r for i, r in enumerate(whole) if i != row]


@pytest.mark.parametrize("shares", CUTS, ids=str)
def test_a_row_whose_ids_are_all_excluded_says_so(shares: tuple[float, ...]) -> None:
    logits = random_logits(len(MIXED), 9)
    whole = sample(logits, [replace(draw, edit=None) for draw in MIXED], shares)
    for edit in (Edit(barred=tuple(range(9))), Edit(allowed=()), Edit(allowed=(2, 3), barred=(2, 3)), Edit(allowed=(9, 10**9))):
        for row in range(len(MIXED)):
            asked = [replace(draw, edit=edit if i == row else None) for i, draw in enumerate(MIXED)]
            found = sample(logits, asked, shares)
            assert found[row].tokens == () and "every id is excluded" in (found[row].error or "")
            assert [r for i, r in enumerate(found) if i != row] == [r for i, r in enumerate(whole) if i != row]


# --- rows and items ---------------------------------------------------------------------------------------------------


def test_the_position_is_that_of_the_new_token() -> None:
    """However its history was cut into steps."""
    logits = random_logits(1, 1000)
    whole = Item(0, tuple(range(10)), 0, 10, (), drawn=(0,))
    last = Item(0, (9,), 9, 10, (), drawn=(0,))
    assert Sampled(logits, [whole], [FREE], even(1)).results == Sampled(logits, [last], [FREE], even(1)).results
    many = sample(logits.expand(29, -1), [FREE] * 29, positions=range(1, 30))
    assert len(set(tokens(many))) > 10


def test_choices_share_a_row() -> None:
    """n continuations of one prompt: as many as if each had the row for itself."""
    logits = random_logits(3, 300)
    asked = [replace(MIXED[i % 6], sequence=10 + i, choice=i) for i in range(6)]
    items = [
        Item(10, (1, 2), 0, 2, (), drawn=(10, 11, 12)),
        Item(13, (5,), 4, 5, (), drawn=(13,)),
        Item(14, (5,), 8, 9, (), drawn=(14, 15)),
    ]
    found = Sampled(logits, items, asked, even(2)).results
    rows, places = [0, 0, 0, 1, 2, 2], [2, 2, 2, 5, 9, 9]
    assert [result.sequence for result in found] == [10, 11, 12, 13, 14, 15]
    assert tokens(found) == tokens(sample(logits[rows], asked, positions=places))


def test_draws_are_those_of_the_step() -> None:
    with pytest.raises(ValueError, match=r"draws are for sequences \[0\]; the step draws for \[5\]"):
        Sampled(random_logits(1, 9), [Item(5, (0,), 0, 1, (), drawn=(5,))], [FREE], even(1))


# --- log-probabilities ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shares", CUTS, ids=str)
def test_targets_are_scored_as_the_model_has_them(shares: tuple[float, ...]) -> None:
    """More rows than are computed at a time, of two items, one of which draws too."""
    logits = random_logits(150, 70)
    one = Item(0, (0,) * 99, 0, 100, (), targets=tuple(i % 70 for i in range(99)), top=4)
    two = Item(1, (0,) * 51, 0, 51, (), targets=tuple(range(50)), drawn=(1,))
    draw = replace(FREE, sequence=1)
    found = Sampled(logits, [one, two], [draw], shares)
    first, second = found.results
    assert (first.sequence, first.tokens, first.error, second.sequence) == (0, (), None, 1)
    assert only(second).token == full.choose(logits[149], draw, 51)
    for i, score in enumerate((*first.scores, *second.scores)):
        wanted = full.scored(logits[i], (*one.targets, *two.targets)[i], 4 if i < 99 else 0)
        assert (score.token, score.rank, [t for t, _ in score.top]) == (wanted.token, wanted.rank, [t for t, _ in wanted.top])
        assert [score.logprob, *(x for _, x in score.top)] == pytest.approx(
            [wanted.logprob, *(x for _, x in wanted.top)], abs=1e-5
        )
    rows = traffic_rows([one, two], [draw], 70)
    assert rows.targets == ((64, 4), (64, 4), (21, 4))


def test_targets_of_a_row_that_is_not_finite_are_an_error() -> None:
    logits = random_logits(4, 20)
    logits[1, 3] = math.nan
    items = [Item(i, (0, 0), 0, 3, (), targets=(1, 2)) for i in range(2)]
    first, second = Sampled(logits, items, [], even(2)).results
    assert first.scores == () and "finite" in (first.error or "")
    assert len(second.scores) == 2 and second.error is None


def test_more_log_probabilities_than_tokens() -> None:
    chosen = only(sample(torch.tensor([[1.0, 2.0]]), [replace(FREE, logprobs=20)], (1.0, 1e-6))[0])
    assert [token for token, _ in chosen.top] == [1, 0]


def test_no_more_is_told_than_there_are_ids() -> None:
    """Of a vocabulary of two, beside a draw that names an id: what another draw names is not the first one's third."""
    most, naming = Draw(0, 0.0, 0, logprobs=3), Draw(1, 0.0, 0, logprobs=0, named=(0,))
    told = beside((most, naming), 2)
    assert (told.of(most), told.of(naming)) == (slice(2), slice(2, 3))
