"""What is the same, what is the same up to rounding, and what differs: on traces written by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from shardwise.verify.trace import KEPT_BYTES, Place, Text, Trace, begun, stride
from shardwise.verify.verdict import Comparison, compare, tolerance

FLOAT32 = tolerance("float32", 2, routed=False)


def row(*logits: float) -> np.ndarray:
    return np.array(logits, np.float32)


THEIRS = [row(1, 2, 4, 0), row(0, 3, 1, 3.00001), row(8, 1, 2, 3), row(0, 1, 2, 5)]
"""The logits of four places: after two tokens of a prompt, and two that were drawn. The second is a near tie: 3 before 1."""


def trace(rows: list[np.ndarray], theirs: Trace | None = None, every: int = 1) -> Trace:
    """Two tokens of a prompt, then what the logits make likeliest."""
    [found] = begun([Text("t", (0, 2))], None if theirs is None else [theirs])
    for one in rows:
        found.put(one, theirs, every)
    return found


def against(rows: list[np.ndarray], every: int = 1, **changes: float) -> Comparison:
    base = trace(THEIRS, every=every)
    return compare([trace(rows, base)], [base], replace(FLOAT32, **changes))


def test_a_trace_says_what_is_likeliest():
    found = trace(THEIRS)
    assert found.tokens == [0, 2, 3, 0, 3] and found.greedy == [3, 0, 3]
    assert [place.best for place in found.places] == [2, 3, 0, 3]
    assert found.places[0].logprob == pytest.approx(4 - math.log(math.e + math.e**2 + math.e**4 + 1))
    assert found.places[0].scale == 4 and found.places[0].gap == pytest.approx(0.5)
    assert sorted(found.kept) == [0, 1, 2, 3]


def test_logits_of_huge_size_have_a_log_likelihood():
    assert trace([row(0, 0, -3e38, 3e38), *THEIRS[1:]]).places[0].logprob == pytest.approx(-6e38)


def test_same():
    found = against(THEIRS)
    assert found.verdict == "same" and found.reasons == ()
    assert (found.rows, found.scored, found.tokens, found.equal) == (4, 4, 3, 3)
    assert found.worst_abs == found.worst_rel == found.mean == found.worst_logprob == 0


def test_same_up_to_rounding():
    ours = [THEIRS[0] + row(0, 0, 1e-5, 0), *THEIRS[1:]]
    found = against(ours)
    assert found.verdict == "same up to rounding"
    assert found.worst_abs == pytest.approx(1e-5, rel=0.05) and found.worst_rel == pytest.approx(2.5e-6, rel=0.05)


def test_a_near_tie_is_said_to_be_one():
    ours = [THEIRS[0], row(0, 3.00002, 1, 3.00001), *THEIRS[2:]]
    found = against(ours)
    assert found.verdict == "same up to rounding"
    assert (found.equal, found.ties) == (2, 1)
    assert found.first is not None and found.first.tie
    assert (found.first.text, found.first.position, found.first.ours, found.first.theirs) == (0, 2, 1, 3)
    assert found.first.gap == pytest.approx(1e-5 / 3, rel=0.05)
    assert against(ours, tie=1e-6).verdict == "differs"


def test_another_token_differs():
    found = against([*THEIRS[:2], row(8, 8.5, 2, 3), THEIRS[3]])
    assert found.verdict == "differs"
    assert any("1 of 3 greedy tokens are others, and no near ties" in reason for reason in found.reasons)
    assert found.first is not None and not found.first.tie and found.first.position == 3


def test_the_first_difference_that_is_no_tie_comes_first():
    found = against([THEIRS[0], row(0, 3.00002, 1, 3.00001), THEIRS[2], row(9, 1, 2, 5)])
    assert found.ties == 1 and found.first is not None
    assert not found.first.tie and found.first.position == 4


def test_the_mean_finds_what_single_places_hide():
    """Every logit is within its bound, and all tokens are less likely by the same."""
    lower = [one - 9e-5 * np.eye(4, dtype=np.float32)[int(one.argmax())] for one in THEIRS]
    found = against(lower, tie=1e-3)
    assert found.reasons == (f"the mean log-likelihood is out by {found.mean:+.2g} a token, and rounding may do 1e-05",)


def test_a_mixture_may_be_out_at_a_few_places():
    """There and only there, another token is forgiven, and the mean is of the others."""
    ours = [THEIRS[0], THEIRS[1], row(1, 9, 2, 3), THEIRS[3]]
    assert against(ours).verdict == "differs"
    found = against(ours, strays=0.25)
    assert (found.verdict, found.strays, found.equal, found.mean) == ("same up to rounding", 1, 2, 0)
    assert found.first is not None and found.first.stray and not found.first.tie
    assert against(ours, strays=0.24).verdict == "differs"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_differ(value):
    found = against([THEIRS[0], THEIRS[1], row(8, value, 2, 3), THEIRS[3]])
    assert found.verdict == "differs" and found.reasons[0] == "the logits of 1 of 4 places are not finite"
    base = trace([THEIRS[0], THEIRS[1], row(8, value, 2, 3), THEIRS[3]])
    assert compare([trace(THEIRS, base)], [base], FLOAT32).verdict == "differs"


def test_log_probabilities_alone():
    """As a server gives them: of some places, without logits."""
    mine = trace(THEIRS)
    said = [None, *(place.logprob for place in mine.places[1:])]
    base = Trace(2, list(mine.tokens), [Place(score) for score in said])
    found = compare([trace(THEIRS, base)], [base], FLOAT32)
    assert (found.verdict, found.rows, found.scored, found.worst_rel) == ("same", 0, 3, None)
    base.places[2] = Place((base.places[2].logprob or 0) - 0.1)
    found = compare([trace(THEIRS, base)], [base], FLOAT32)
    assert found.verdict == "differs" and "a log-probability is out by up to 0.1" in found.reasons[0]


def test_not_all_logits_are_kept():
    """Every second place, counted from the prompt's last."""
    found = against([one + np.float32(1e-6) for one in THEIRS], every=2)
    assert (found.rows, found.scored) == (2, 4)
    texts = [Text("a", (1,) * 100), Text("b", (1,) * 28)]
    assert stride(texts, 16, 1000) == 1
    rows = 128 + 32
    assert stride(texts, 16, KEPT_BYTES // (4 * rows)) == 1
    assert stride(texts, 16, KEPT_BYTES // (4 * rows) + 1) == 2


def test_tolerances_grow_with_depth_and_coarseness():
    assert tolerance("float32", 80, routed=False) == FLOAT32
    for layers in (2, 32):
        half, brain = (tolerance(dtype, layers, routed=False) for dtype in ("float16", "bfloat16"))
        assert FLOAT32.logits < half.logits < brain.logits < 0.5
    assert half.logits == pytest.approx(4 * tolerance("float16", 2, routed=False).logits)
    assert tolerance("bfloat16", 2, routed=True).strays > tolerance("float32", 2, routed=True).strays > 0 == FLOAT32.strays
