"""Files of requests: each line answered once, bad ones told apart, an output never overwritten, and resumable always."""

from __future__ import annotations

import fcntl
import io
import json
import re
import resource
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from shardwise.cli.batch import Batch
from shardwise.cli.lines import LIMIT_BYTES, Defaults, read_lines
from shardwise.cli.results import Results, open_results
from shardwise.cli.show import shown_logprobs
from shardwise.engine.fake import FakeEngine
from shardwise.engine.front import Front
from shardwise.engine.outputs import Logprob
from shardwise.engine.setup import Setup
from shardwise.errors import ShardwiseError, UserError

DEFAULTS = Defaults("shardling", {})


@pytest.fixture
def front(setup: Setup) -> Iterator[Front]:
    with FakeEngine(setup) as engine:
        yield Front(engine)


def jsonl(*lines: object) -> bytes:
    return b"".join(line + b"\n" if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines)


def answered(front: Front, data: bytes, defaults: Defaults = DEFAULTS) -> dict[int, dict[str, Any]]:
    """Output by line."""
    written: list[bytes] = []
    list(Batch(front, defaults, written.append).run(read_lines(io.BytesIO(data), defaults)))
    found = [json.loads(line) for line in written]
    assert len({line["line"] for line in found}) == len(found)
    return {line["line"]: line for line in found}


# --- lines ------------------------------------------------------------------------------------------------------------


def test_every_kind_of_line(front: Front):
    body = {"model": "any", "messages": [{"role": "user", "content": "Hi"}], "max_completion_tokens": 3, "logprobs": True}
    found = answered(
        front,
        jsonl(
            {"id": "a", "prompt": "Once", "max_tokens": 4, "n": 2},
            {"prompt_token_ids": [5, 6], "max_tokens": 2},
            b"",
            {"id": 9, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3},
            {"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": body},
            {"prompt": [7, 8], "max_tokens": 1, "prompt_logprobs": 1},
        ),
    )
    assert {line: one["id"] for line, one in found.items()} == {1: "a", 2: 2, 4: 9, 5: "c", 6: 6}
    assert all(one["error"] is None for one in found.values())
    assert [len(choice["token_ids"]) for choice in found[1]["outputs"]] == [4, 4] and found[1]["completion_tokens"] == 8
    assert found[2]["prompt_tokens"] == 2 and found[2]["outputs"][0]["finish_reason"] == "length"
    assert found[4]["outputs"][0]["text"] == found[5]["outputs"][0]["text"]
    assert "logprobs" not in found[4]["outputs"][0]
    assert [place["token_id"] for place in found[5]["outputs"][0]["logprobs"]] == found[5]["outputs"][0]["token_ids"]
    assert found[6]["prompt_logprobs"][0] is None and found[6]["prompt_logprobs"][1]["token_id"] == 8


def test_a_line_may_ask_for_a_structural_tag(front: Front):
    """Under any of its names; one that is none is that line's error alone."""
    tag = {"structures": [{"begin": "<f>", "schema": {"type": "integer"}, "end": "</f>"}], "triggers": ["<f"]}
    asked = [
        {"response_format": {"type": "structural_tag", **tag}},
        {"structural_tag": json.dumps(tag)},
        {"structured_outputs": {"structural_tag": {**tag, "triggers": ["@"]}}},
    ]
    found = answered(front, jsonl(*({"prompt": "Once", "max_tokens": 2, **each} for each in asked)))
    assert found[1]["error"] is None and found[1]["outputs"] == found[2]["outputs"]
    assert "structured_outputs.structural_tag.triggers has '@', with which none of structures begins" in str(found[3]["error"])


def test_defaults_and_what_lines_say_otherwise(front: Front):
    engine = front.core
    assert isinstance(engine, FakeEngine)
    defaults = Defaults("m", {"temperature": 0.5, "max_tokens": 3, "stop": ("x",)}, chat=True, system="Be brief.")
    found = answered(
        front, jsonl({"prompt": "Hi"}, {"prompt": "Hi", "temperature": 0, "max_tokens": None, "stop": []}), defaults
    )
    (first, given), (_, own) = engine.submitted
    assert (given.temperature, given.max_tokens, given.stop) == (0.5, 3, ("x",))
    assert (own.temperature, own.max_tokens, own.stop) == (0, None, ())
    text = front.tokenizer.decode(first, skip_special_tokens=False)
    assert "Hi" in text and "Be brief." in text
    assert found[1]["seed"] == given.seed is not None and found[1]["seed"] != found[2]["seed"]


def test_without_a_limit_the_context_is_one(front: Front):
    context = front.core.setup.context
    found = answered(
        front, jsonl({"prompt": "Hi", "ignore_eos": True}, {"prompt_token_ids": [5] * (context - 7), "ignore_eos": True})
    )
    assert [found[n]["completion_tokens"] for n in (1, 2)] == [256, 7]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "it is not valid JSON"),
        (b"[1]", "it is [1]; a JSON object a line is wanted"),
        (b'{"prompt": "caf\xe9"}', "it is not UTF-8: byte 15 is 0xE9"),
        (b'{"prompt": "x", "temperature": NaN}', "NaN is no number of JSON"),
        (b"[" * 100_000, "it is not valid JSON"),
        (b'{"prompt": "' + b"x" * LIMIT_BYTES + b'"}', "it is longer than 16 MiB"),
        ({}, "it has no prompt; give one of prompt, prompt_token_ids, messages"),
        ({"prompt": "x", "messages": []}, "it has prompt and messages; give one of"),
        ({"prompt": 5}, "prompt is 5; it takes text"),
        ({"prompt": ["a", "b"]}, "token id 0 of prompt is 'a'"),
        ({"prompt_token_ids": [99999]}, "token id 99999 is not in this model's vocabulary"),
        ({"prompt_token_ids": []}, "prompt_token_ids is empty"),
        ({"prompt": "\ud800"}, "prompt has half a surrogate pair"),
        ({"messages": "Hi"}, "messages: messages must be a list"),
        ({"messages": [{"role": "usr", "content": "Hi"}]}, "messages[0].role is 'usr'"),
        ({"prompt": "x", "tools": [{}]}, "tools is for conversations; give messages"),
        ({"prompt": "x", "temprature": 1}, "unknown field 'temprature', nearest: temperature"),
        ({"prompt": "x", "temperature": -1}, "temperature is -1"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens is 0"),
        ({"prompt": "x", "stop": ["a", None]}, "stop[1] is null; it takes a string"),
        ({"prompt": "x", "ignore_eos": 1}, "ignore_eos is 1; it takes true or false"),
        ({"prompt": "x", "max_tokens": 10**6}, "the prompt has 2 tokens and max_tokens is 1000000"),
        ({"prompt": "x", "min_tokens": "5"}, "min_tokens is '5'"),
        ({"prompt": "x", "id": 1.5}, "id is 1.5; it takes a string or a whole number"),
        ({"body": {"prompt": "x"}, "prompt": "x"}, "unknown field 'prompt' beside body"),
        ({"body": "x"}, "body is 'x'; an object is wanted"),
        ({"prompt": "x", "id": "good"}, "id 'good' is that of line 1 too"),
    ],
    ids=lambda value: None if isinstance(value, str) else "line",
)  # fmt: skip
def test_a_bad_line_is_told_and_the_rest_goes_on(front: Front, line: object, message: str):
    good = {"id": "good", "prompt": "Once", "max_tokens": 2}
    found = answered(front, jsonl(good, line, {**good, "id": "too"}))
    assert message in found[2]["error"] and "outputs" not in found[2]
    assert found[1]["error"] is None and found[3]["error"] is None


def test_a_bad_line_takes_no_other_line_s_id(front: Front):
    """Ids that count from 0: a line that cannot be read goes by its number, which is the id of the one behind it."""
    lines = [{"id": n, "prompt": "Once", "max_tokens": 2} for n in range(4)]
    found = answered(front, jsonl(lines[0], b"{", *lines[2:]))
    assert [found[n]["id"] for n in (1, 2, 3, 4)] == [0, 2, 2, 3]
    assert [n for n, one in found.items() if one["error"] is not None] == [2]


def test_a_mark_at_the_start_and_any_line_end(front: Front):
    found = answered(front, b'\xef\xbb\xbf{"prompt": "a"}\r\n \r\n{"prompt": "b"}')
    assert {line: one["error"] for line, one in found.items()} == {1: None, 3: None}


def test_more_lines_than_run_at_once(front: Front):
    found = answered(
        front, jsonl(*({"prompt_token_ids": [n % 50 + 1], "max_tokens": n % 3 + 1, "ignore_eos": True} for n in range(3000)))
    )
    assert [found[n + 1]["completion_tokens"] for n in range(3000)] == [n % 3 + 1 for n in range(3000)]


def test_what_failed_for_no_fault_of_its_own_has_no_output(setup: Setup):
    with FakeEngine(setup, lambda prompt, _choice, _place: -1 if prompt[0] == 2 else 9) as engine:
        written: list[bytes] = []
        batch = Batch(Front(engine), DEFAULTS, written.append)
        data = jsonl(*({"prompt_token_ids": [n], "max_tokens": 2} for n in (1, 2, 3)))
        list(batch.run(read_lines(io.BytesIO(data), DEFAULTS)))
        assert sorted(json.loads(line)["line"] for line in written) == [1, 3]
        assert batch.lost == [(2, "no finite logits at token 0")] and batch.failed == 0


def test_an_engine_that_breaks_ends_the_batch(setup: Setup):
    with FakeEngine(setup) as engine:
        engine.close()
        with pytest.raises(ShardwiseError, match="the engine was closed"):
            list(Batch(Front(engine), DEFAULTS, print).run(read_lines(io.BytesIO(jsonl({"prompt": "a"})), DEFAULTS)))


# --- the output -------------------------------------------------------------------------------------------------------

LINES = jsonl(
    *({"id": f"n{n}", "prompt": f"number {n}", "max_tokens": 2} for n in range(20)), b"{", {"id": "n0", "prompt": "x"}
)


def go(
    front: Front, data: bytes, path: Path, *, resume: bool = False, defaults: Defaults = DEFAULTS, most: int = 10**9
) -> Results:
    """One run of the command's inner part, interrupted after `most` lines of output."""
    results = open_results(str(path), io.BytesIO(data), "in.jsonl", defaults, resume=resume)
    left = iter(range(most))

    with results.writing(str(path)) as sink:

        def limited(line: bytes) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            sink(line)

        todo = (line for line in read_lines(io.BytesIO(data), defaults) if line.number not in results.done)
        list(Batch(front, defaults, limited, results.names).run(todo))
    return results


def lines_of(path: Path) -> list[dict[str, Any]]:
    return sorted((json.loads(line) for line in path.read_bytes().splitlines()), key=lambda line: line["line"])


def told(lines: list[dict[str, Any]]) -> list[Mapping[str, Any]]:
    """Without the seeds, which are drawn."""
    return [{key: value for key, value in line.items() if key != "seed"} for line in lines]


def test_interrupted_anywhere_and_resumed_is_as_in_one_go(front: Front, tmp_path: Path):
    whole = tmp_path / "whole.jsonl"
    go(front, LINES, whole)
    for most in range(23):
        path = tmp_path / f"{most}.jsonl"
        if most < 22:
            with pytest.raises(KeyboardInterrupt):
                go(front, LINES, path, most=most)
        else:
            go(front, LINES, path, most=most)
        until_idle(front)
        cut = path.read_bytes() + b'{"id": "half a li'
        path.write_bytes(cut)
        results = go(front, LINES, path, resume=True)
        assert len(results.done) == most and results.lines == 22 - most
        assert told(lines_of(path)) == told(lines_of(whole))


def until_idle(front: Front) -> None:
    assert isinstance(front.core, FakeEngine)
    assert front.core.running == 0


def test_nothing_is_left_to_do(front: Front, tmp_path: Path):
    path = tmp_path / "out.jsonl"
    go(front, LINES, path)
    before = path.read_bytes()
    assert go(front, LINES, path, resume=True).failed == 2
    assert path.read_bytes() == before


def test_resuming_what_is_not_there_begins_it(front: Front, tmp_path: Path):
    go(front, LINES, tmp_path / "new.jsonl", resume=True)
    assert len(lines_of(tmp_path / "new.jsonl")) == 22


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda data, out: (data.replace(b"number 3", b"number 4"), out),
            "has an answer to line 4, which in in.jsonl is another one",
        ),
        (lambda data, out: (data[: data.index(b"\n")], out), "which in.jsonl does not have"),
        (lambda data, out: (data, b'{"text": 1}\n' + out), "line 1 of {path} is not what this command writes"),
        (lambda data, out: (data, b"\xff\n" + out), "line 1 of {path} is not what this command writes"),
        (lambda data, out: (data, out + out), "line 23 of {path} answers line"),
    ],
)
def test_another_input_or_output_is_refused(
    front: Front, tmp_path: Path, change: Callable[..., tuple[bytes, bytes]], message: str
):
    path = tmp_path / "out.jsonl"
    go(front, LINES, path)
    data, out = change(LINES, path.read_bytes())
    path.write_bytes(out)
    with pytest.raises(UserError, match=re.escape(message.format(path=path))):
        go(front, data, path, resume=True)
    assert path.read_bytes() == out


def test_other_flags_or_another_model_are_refused(front: Front, tmp_path: Path):
    path = tmp_path / "out.jsonl"
    go(front, LINES, path)
    for defaults in (Defaults("other", {}), Defaults("shardling", {"temperature": 0.5}), Defaults("shardling", {}, chat=True)):
        with pytest.raises(UserError, match="or the model or the sampling flags are others"):
            go(front, LINES, path, resume=True, defaults=defaults)


def test_an_output_is_never_overwritten(front: Front, tmp_path: Path):
    path = tmp_path / "out.jsonl"
    path.write_text("mine")
    with pytest.raises(UserError, match=r"exists; add --resume to go on with it, or give a new file"):
        go(front, LINES, path)
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="exists"):
        go(front, LINES, tmp_path / "link.jsonl")
    late = open_results(str(tmp_path / "late.jsonl"), None, "", DEFAULTS, resume=False)
    (tmp_path / "late.jsonl").write_text("mine")
    with pytest.raises(UserError, match="File exists"), late.writing(str(tmp_path / "late.jsonl")):
        pass
    assert path.read_text() == (tmp_path / "late.jsonl").read_text() == "mine"
    with pytest.raises(UserError, match="there is no folder"):
        go(front, LINES, tmp_path / "none" / "out.jsonl")


def test_one_run_at_a_time(front: Front, tmp_path: Path):
    path = tmp_path / "out.jsonl"
    go(front, LINES, path)
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is being written by another run"):
            go(front, LINES, path, resume=True)
    results = open_results(str(path), io.BytesIO(LINES), "in.jsonl", DEFAULTS, resume=True)
    path.write_bytes(path.read_bytes() + b"more\n")
    with pytest.raises(UserError, match="was changed by another run just now"), results.writing(str(path)):
        pass


def test_a_file_that_cannot_grow_is_told(tmp_path: Path):
    path = tmp_path / "out.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (7, hard))
    try:
        with pytest.raises(ShardwiseError, match="File too large; what is there so far"), Results().writing(str(path)) as sink:
            sink(b"12345\n")
            sink(b"67890\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"12345\n6"


def test_log_probabilities_of_named_ids_are_shown_as_they_come():
    place = {5: Logprob(-2.0, 3, "a"), 9: Logprob(-7.0, None, "b"), 2: Logprob(-1.0, None, "c")}
    assert [each["token_id"] for each in shown_logprobs(place, 0)["top"]] == [9, 2]
    ranked = {5: Logprob(-2.0, 3, "a"), 9: Logprob(-0.5, 1, "b"), 2: Logprob(-1.0, 2, "c")}
    assert [each["token_id"] for each in shown_logprobs(ranked, 3)["top"]] == [9, 2, 5]
