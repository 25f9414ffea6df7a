"""Events become outputs: whole characters, stop strings cut, ends told apart; deltas add up to the whole on real tokenizers."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from shardwise.engine.complete import Prompt, Transcript
from shardwise.engine.hub import bundled
from shardwise.engine.outputs import RequestOutput
from shardwise.engine.text import Tokenizer, open_tokenizer
from shardwise.sched.events import Emitted, Ended, Finish, Scored
from shardwise.sched.request import RequestOutputKind, SamplingParams
from shardwise.sched.step import Chosen

DELTA = RequestOutputKind.DELTA
FOLDERS = ("gpt2", "llama2", "qwen3", "smollm", "phi3")
PIECES = ("Hello", " world", "\n", "नमस्ते", "漢字", "한글", "עברית", "👩‍👩‍👧‍👦", "👍🏽", "é", "e\u0301", "ไทย", "</s>", "a ")


@pytest.fixture(scope="session")
def shardling() -> Tokenizer:
    return open_tokenizer(bundled())


@pytest.fixture(scope="session", params=FOLDERS)
def tokenizer(request: pytest.FixtureRequest, data: Path) -> Tokenizer:
    return open_tokenizer(data / "tokenizers" / request.param)


def transcript(tokenizer: Tokenizer, params: SamplingParams, prompt: Iterable[int] = (), **options) -> Transcript:
    return Transcript("1", Prompt(None, tuple(prompt)), params, tokenizer, **options)


def fed(tokenizer: Tokenizer, ids: list[int], finish: Finish = "length", prompt: Iterable[int] = (), **fields) -> RequestOutput:
    """The output of one choice that got `ids`."""
    made = transcript(tokenizer, SamplingParams(max_tokens=None, **fields), prompt)
    for n, token in enumerate(ids):
        made.feed(Emitted(1, 0, Chosen(token), finish if n == len(ids) - 1 else None))
    made.feed(Ended(1))
    return made.output()


def texts(rng: random.Random, data: Path) -> str:
    """Some characters from anywhere in real texts of many languages, or pieces that are hard to cut."""
    if rng.random() < 0.3:
        return "".join(rng.choices(PIECES, k=rng.randrange(1, 12)))
    file = rng.choice(sorted(path for path in (data / "text").rglob("*") if path.is_file()))
    with file.open("rb") as opened:
        opened.seek(rng.randrange(max(1, file.stat().st_size - 400)))
        return opened.read(300).decode(errors="ignore")


def test_deltas_add_up_to_the_decoded_text(tokenizer: Tokenizer, data: Path) -> None:
    rng = random.Random(7)
    for _ in range(150):
        ids = tokenizer.encode(texts(rng, data), add_special_tokens=False)
        if not ids:
            continue
        cut, skip = rng.randrange(len(ids)), rng.random() < 0.5
        prompt, rest = ids[:cut], ids[cut:]
        params = SamplingParams(max_tokens=None, skip_special_tokens=skip)
        made, kept = transcript(tokenizer, params, prompt), transcript(tokenizer, params, prompt)
        deltas = []
        for n, token in enumerate(rest):
            for each in (made, kept):
                each.feed(Emitted(1, 0, Chosen(token), "length" if n == len(rest) - 1 else None))
            if rng.random() < 0.7:
                deltas.append(made.output(DELTA))
        for each in (made, kept):
            each.feed(Ended(1))
        deltas.append(made.output(DELTA))
        whole = kept.output().outputs[0]
        assert made.tokens == kept.tokens == len(rest)
        assert "".join(delta.outputs[0].text for delta in deltas) == whole.text
        assert [token for delta in deltas for token in delta.outputs[0].token_ids] == whole.token_ids == rest
        before = tokenizer.decode(prompt, skip_special_tokens=skip)
        if "\ufffd" not in before:  # the prompt ends between characters
            assert before + whole.text == tokenizer.decode(ids, skip_special_tokens=skip)
        if "\ufffd" not in whole.text:
            assert all("\ufffd" not in delta.outputs[0].text for delta in deltas)


def test_stop_strings_anywhere_in_real_texts(tokenizer: Tokenizer, data: Path) -> None:
    rng = random.Random(8)
    for _ in range(100):
        ids = tokenizer.encode(texts(rng, data), add_special_tokens=False)
        text = fed(tokenizer, ids, "length").outputs[0].text if ids else ""
        if not text:
            continue
        start = rng.randrange(len(text))
        stop = text[start : start + rng.randrange(1, 6)]
        for include in (False, True):
            found = fed(tokenizer, ids, stop=stop, include_stop_str_in_output=include).outputs[0]
            at = text.index(stop)
            assert found.text == text[: at + len(stop) if include else at]
            assert (found.finish_reason, found.stop_reason) == ("stop", stop)


def test_a_stop_string_is_reported_once_and_the_surplus_dropped(shardling: Tokenizer) -> None:
    ids = shardling.encode("one two three four", add_special_tokens=False)
    made = transcript(shardling, SamplingParams(stop=["two"]))
    told = [made.feed(Emitted(1, 0, Chosen(token))) for token in ids]
    assert told.count(0) == 1 and set(told) == {0, None}
    output = made.output()
    assert (output.outputs[0].text, output.finished) == ("one ", False)
    assert len(output.outputs[0].token_ids) == told.index(0) + 1
    made.feed(Ended(1))
    assert made.output().finished


def test_min_tokens_put_off_stop_strings(shardling: Tokenizer) -> None:
    ids = shardling.encode("one two one two", add_special_tokens=False)
    half = len(shardling.encode("one two", add_special_tokens=False))
    assert fed(shardling, ids, stop=["one"]).outputs[0].text == ""
    assert fed(shardling, ids, stop=["one"], min_tokens=half).outputs[0].text == "one two "
    assert fed(shardling, ids, stop=["one"], min_tokens=len(ids)).outputs[0].text == "one two one two"


def test_ends_are_told_apart(shardling: Tokenizer) -> None:
    [eos, *_], ids = shardling.eos_ids, shardling.encode("one", add_special_tokens=False)
    found = fed(shardling, [*ids, eos], "stop").outputs[0]
    assert (found.text, found.finish_reason, found.stop_reason, found.token_ids[-1]) == ("one", "stop", None, eos)
    [dot] = shardling.encode(".", add_special_tokens=False)
    found = fed(shardling, [*ids, dot], "stop", stop_token_ids=[dot]).outputs[0]
    assert (found.text, found.stop_reason) == ("one", dot)
    assert fed(shardling, [*ids, dot], "stop", stop_token_ids=[dot], include_stop_str_in_output=True).outputs[0].text == "one."
    assert fed(shardling, [*ids, eos], "stop", include_stop_str_in_output=True).outputs[0].text == "one"
    shown = fed(shardling, [*ids, eos], "stop", include_stop_str_in_output=True, skip_special_tokens=False).outputs[0].text
    assert shown == "one" + shardling.token_text(eos) != "one"


def test_special_tokens_are_skipped_or_not(shardling: Tokenizer) -> None:
    [eos, *_], ids = shardling.eos_ids, shardling.encode("one", add_special_tokens=False)
    assert fed(shardling, [eos, *ids], skip_special_tokens=True).outputs[0].text == "one"
    assert fed(shardling, [eos, *ids], skip_special_tokens=False).outputs[0].text == shardling.token_text(eos) + "one"


def test_without_text(shardling: Tokenizer) -> None:
    found = fed(shardling, [5, 6], detokenize=False).outputs[0]
    assert (found.text, found.token_ids, found.finish_reason) == ("", [5, 6], "length")


def test_an_aborted_request_keeps_what_it_has(shardling: Tokenizer) -> None:
    made = transcript(shardling, SamplingParams(n=2, stop=["one two three"]))
    for token in shardling.encode("one two", add_special_tokens=False):
        made.feed(Emitted(1, 0, Chosen(token)))
    assert made.output().outputs[0].text == ""
    made.feed(Ended(1))
    first, second = made.output().outputs
    assert (first.text, first.finish_reason) == ("one two", "abort")
    assert (second.text, second.finish_reason) == ("", "abort")


def test_logprobs_name_tokens(shardling: Tokenizer) -> None:
    made = transcript(shardling, SamplingParams(logprobs=2, prompt_logprobs=1), (1, 2))
    made.feed(Scored(1, (Chosen(2, -3.0, 9, ((4, -0.1),)),)))
    made.feed(Emitted(1, 0, Chosen(7, -2.0, 2, ((6, -0.5), (7, -2.0)))))
    made.feed(Emitted(1, 0, Chosen(8, -4.0, 5, ((6, -0.5), (7, -2.0))), "length"))
    made.feed(Ended(1, cached=1, preempted=3))
    output = made.output()
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None and list(output.prompt_logprobs[1] or ()) == [2, 4]
    [choice] = output.outputs
    assert choice.cumulative_logprob == -6.0 and choice.logprobs is not None
    assert [(token, p.logprob, p.rank) for token, p in choice.logprobs[0].items()] == [(7, -2.0, 2), (6, -0.5, 1)]
    assert [(token, p.logprob, p.rank) for token, p in choice.logprobs[1].items()] == [(8, -4.0, 5), (6, -0.5, 1), (7, -2.0, 2)]
    assert all(p.decoded_token == shardling.token_text(token) for place in choice.logprobs for token, p in place.items())
    assert (output.num_cached_tokens, output.metrics.preempted) == (1, 3)
    plain = fed(shardling, [7]).outputs[0]
    assert plain.logprobs is None and plain.cumulative_logprob is None


def test_scoring_has_no_text(shardling: Tokenizer) -> None:
    made = transcript(shardling, SamplingParams(max_tokens=0, prompt_logprobs=0), (1, 2))
    made.feed(Scored(1, (Chosen(2, -3.0, 9),)))
    made.feed(Ended(1))
    [choice] = made.output().outputs
    assert (choice.text, choice.finish_reason) == ("", "length")
    assert [p and p[2].logprob for p in made.output().prompt_logprobs or ()] == [None, -3.0]


def test_times_are_counted_from_the_start(shardling: Tokenizer) -> None:
    times = iter((10.0, 10.5, 12.0))
    made = transcript(shardling, SamplingParams(), clock=lambda: next(times))
    made.feed(Emitted(1, 0, Chosen(5)))
    made.feed(Emitted(1, 0, Chosen(6)))
    made.feed(Ended(1))
    assert (made.output().metrics.first_token_s, made.output().metrics.total_s) == (0.5, 2.0)


def test_an_output_does_not_change_afterwards(shardling: Tokenizer) -> None:
    made = transcript(shardling, SamplingParams(logprobs=0))
    made.feed(Emitted(1, 0, Chosen(5)))
    first = made.output()
    made.feed(Emitted(1, 0, Chosen(6)))
    assert first.outputs[0].token_ids == [5] and len(first.outputs[0].logprobs or ()) == 1
