"""Answers of random models are what was asked for, whatever they draw: at any degree, preempted, with ranks lost."""

from __future__ import annotations

import json
import random
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardwise.engine.engine import Engine
from shardwise.engine.front import Front
from shardwise.engine.grammar import DEAD_END, Grammars
from shardwise.engine.hub import bundled
from shardwise.engine.setup import Options, Setup, resolve
from shardwise.engine.text import Tokenizer, open_tokenizer
from shardwise.errors import TIME_UP, RequestError, ShardwiseError
from shardwise.llm import LLM
from shardwise.sched.events import Emitted, Ended
from shardwise.sched.request import SamplingParams
from shardwise.sched.structured import StructuredOutputs
from shardwise.spec.layout import PAGE_TOKENS
from tests.checkpoints import FAMILIES, build
from tests.engine.drive import Ask, Drive
from tests.engine.shapes import answers, schemas

VOCAB = 4110
"""More logits than the tokenizer has ids."""

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["big", "small"]},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
    },
    "required": ["name", "kind", "sizes"],
    "additionalProperties": False,
}
CHOICES = ["yes", "no", "yesterday", "ö 𝄞"]
GBNF = 'root ::= pair ("," pair)?\npair ::= [a-c] "=" [0-9]{1,2}'
TAG: dict[str, Any] = {
    "format": {
        "type": "triggered_tags",
        "triggers": ["<t>"],
        "tags": [{"begin": "<t>", "content": {"type": "json_schema", "json_schema": {"enum": [1, "é"]}}, "end": "</t>"}],
        "at_least_one": True,
        "stop_after_first": True,
    }
}
WANTED: dict[str, StructuredOutputs] = {
    "json": StructuredOutputs(json=SCHEMA),
    "regex": StructuredOutputs(regex=r"(ab|cd){1,4}-\d{2}"),
    "choice": StructuredOutputs(choice=CHOICES),
    "grammar": StructuredOutputs(grammar=GBNF),
    "structural_tag": StructuredOutputs(structural_tag=TAG),
}
FITS: dict[str, Callable[[str], object]] = {
    "json": lambda text: answers(text, SCHEMA),
    "regex": re.compile(r"(ab|cd){1,4}-\d{2}").fullmatch,
    "choice": CHOICES.__contains__,
    "grammar": re.compile(r"[a-c]=[0-9]{1,2}(,[a-c]=[0-9]{1,2})?").fullmatch,
    "structural_tag": re.compile(r'<t>\s*(1|"é")</t>').fullmatch,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random llama with the bundled tokenizer."""
    found = tmp_path_factory.mktemp("structured")
    build({**FAMILIES["llama"], "vocab_size": VOCAB, "max_position_embeddings": 512, "eos_token_id": [6, 1]}, found)
    for path in bundled().glob("*token*.json"):
        shutil.copy(path, found)
    return found


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return open_tokenizer(folder)


@pytest.fixture(scope="module")
def grammars(folder: Path) -> Grammars:
    return Grammars(folder, VOCAB)


def setup_of(folder: Path, tp: int, **changes: object) -> Setup:
    return resolve(Options(str(folder), tp=tp, dtype="float32", device="cpu", threads=1, **changes))  # type: ignore[arg-type]


def params(wanted: StructuredOutputs | None, **changes: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 1.5, "max_tokens": 120, "seed": 1, "structured_outputs": wanted, **changes})


def asks(count: int, seed: int, ends: Sequence[int] = (6, 1)) -> list[Ask]:
    """Of every kind and of none, mixed, up to three choices each, with all that changes logits besides."""
    chance = random.Random(seed)
    found = []
    for index in range(count):
        kind = chance.choice((None, *WANTED))
        own = params(
            WANTED.get(kind or ""),
            seed=index,
            n=chance.choice((1, 1, 3)),
            top_k=chance.choice((0, 0, 50)),
            top_p=chance.choice((1.0, 0.9)),
            repetition_penalty=chance.choice((1.0, 1.3)),
            logit_bias=chance.choice((None, {5000 % VOCAB: 5.0, 40: -3.0})),
            min_tokens=chance.choice((0, 0, 12)),
            max_tokens=chance.choice((15, 100, 100)) if kind else 20,
        )
        prompt = tuple(chance.choice(range(8, 4000)) for _ in range(chance.choice((1, 5, 30))))
        found.append(Ask(prompt, own, tuple(ends)))
    return found


def check(written: Sequence[int], ask: Ask, tokenizer: Tokenizer, finish: str | None, grammars: Grammars) -> str | None:
    """The kind of what was asked for, if it was: each answer that stopped fits it, each other one is the start of one."""
    wanted = ask.params.structured_outputs
    if wanted is None:
        return None
    ended = bool(written) and written[-1] in ask.ends
    inner = list(written[:-1] if ended else written)
    if finish == "stop":
        assert ended or not ask.ends
        assert FITS[wanted.kind](tokenizer.decode(inner)), (wanted, tokenizer.decode(inner))
    else:
        assert finish == "length" and len(written) == ask.params.max_tokens and not ended
        one = grammars.compile(wanted).matcher(ask.ends)
        for at, token in enumerate(inner):
            one.follow(inner[:at])
            assert one.mask()[token // 8] >> token % 8 & 1
    return wanted.kind


def finishes(drive: Drive, number: int, choice: int) -> str | None:
    found = [e.finish for e in drive.told[number].events if isinstance(e, Emitted) and e.choice == choice]
    assert not any(found[:-1])
    return found[-1] if found else None


def run(setup: Setup, wanted: list[Ask], seed: int, *, restart: bool = False) -> Any:
    """The tokens and ends of each choice of each request."""
    with Drive(setup) as drive:
        if restart:
            numbers = [drive.add(ask, index) for index, ask in enumerate(wanted)]
            for at in range(10_000):
                if not drive.core.scheduler.requests:
                    break
                if at % 9 == 5:
                    drive.restart()
                drive.turn()
        else:
            numbers = drive.arriving(wanted, random.Random(seed))
        for number in numbers:
            assert [ended.error for ended in drive.told[number].ended] == [None]
        found = [
            [(drive.told[number].tokens(c), finishes(drive, number, c)) for c in range(ask.params.n)]
            for number, ask in zip(numbers, wanted, strict=True)
        ]
        return found, drive


@pytest.mark.parametrize("ends", [(6, 1), ()], ids=["ends", "no ends"])
def test_the_same_at_every_degree(folder: Path, tokenizer: Tokenizer, grammars: Grammars, ends: tuple[int, ...], figures: Any):
    wanted = asks(24, 3, ends)
    first, _ = run(setup_of(folder, 1), wanted, 1)
    kinds = []
    for ask, choices in zip(wanted, first, strict=True):
        for tokens, finish in choices:
            kinds.append((check(tokens, ask, tokenizer, finish, grammars), finish))
    assert {(kind, "stop") for kind in WANTED} <= set(kinds) and any(finish == "length" for kind, finish in kinds if kind)
    figures("structured answers", whole=sum(finish == "stop" for kind, finish in kinds if kind), answers=len(kinds))
    for tp in (2, 3):
        assert run(setup_of(folder, tp), wanted, tp)[0] == first


def test_preempted_and_with_ranks_lost(folder: Path):
    wanted = asks(20, 7)
    setup = setup_of(folder, 2)
    few = replace(setup, pages=tuple(1 + 320 // PAGE_TOKENS for _ in setup.pages))
    alone, _ = run(setup, wanted, 1)
    found, drive = run(few, wanted, 2)
    assert found == alone and drive.preempted > 3
    # New ranks every nine turns, whatever was in flight: all that is known of an answer is its tokens.
    assert run(few, wanted, 4, restart=True)[0] == alone


@pytest.fixture(scope="module")
def front(folder: Path) -> Any:
    with Engine(setup_of(folder, 2), "threads") as engine:
        yield Front(engine)


def text(front: Front, own: SamplingParams) -> tuple[str, str | None]:
    """The text and end of the first choice."""
    outputs = list(front.stream(front.prompt("Once upon"), own))
    return "".join(output.outputs[0].text for output in outputs), outputs[-1].outputs[0].finish_reason


@given(schema=schemas, seed=st.integers(0, 99), quiet=st.booleans())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
def test_random_schemas(front: Front, schema: dict[str, Any], seed: int, quiet: bool):
    found, finish = text(front, params(StructuredOutputs(json=schema), seed=seed, max_tokens=150, ignore_eos=quiet))
    if finish == "stop":
        assert answers(found, schema), (schema, found)
    else:
        assert finish == "length"


def test_min_tokens_gives_way(front: Front):
    """An answer that can go on goes on; one that cannot has ended."""
    assert text(front, params(StructuredOutputs(regex="[ab]{3}"), min_tokens=60))[1] == "stop"
    long, finish = text(front, params(StructuredOutputs(regex="[ab]*"), min_tokens=30, max_tokens=100, temperature=1.0))
    tokens = list(front.stream(front.prompt("x"), params(StructuredOutputs(regex="[ab]*"), min_tokens=30)))
    assert sum(len(output.outputs[0].token_ids) for output in tokens) >= 30
    assert re.fullmatch("[ab]*", long) and finish in ("stop", "length")


def test_stop_strings_cut_it_all_the_same(front: Front):
    found, finish = text(front, params(StructuredOutputs(regex="[ab]{5}c[ab]{50}"), stop=["c"]))
    assert re.fullmatch("[ab]{5}", found) and finish == "stop"


def test_stop_token_ids_end_a_complete_answer_only(front: Front):
    digit = front.tokenizer.encode("7", add_special_tokens=False)
    own = params(StructuredOutputs(regex="7[ab]{2}", name="guided_regex"), stop_token_ids=digit, ignore_eos=True)
    running = front.stream(front.prompt("Once"), own)
    with pytest.raises(RequestError, match=re.escape(f"guided_regex: {DEAD_END}")):
        list(running)


def test_a_dead_end_is_one_requests_own(front: Front):
    """Others in the same steps go on; `allowed_token_ids` that leave nothing are refused by the ranks."""
    good = [front.start(front.prompt("Once"), params(WANTED["choice"], seed=n), lambda _: None) for n in range(3)]
    letter = front.tokenizer.encode("a", add_special_tokens=False)
    with pytest.raises(RequestError, match="what the answer must look like"):
        text(front, params(StructuredOutputs(regex="b+"), allowed_token_ids=letter))
    assert all(running.number for running in good)
    assert text(front, params(WANTED["choice"]))[0] in CHOICES


def test_it_is_refused_before_anything_runs(front: Front):
    with pytest.raises(RequestError, match=r"structured_outputs\.regex does not compile: invalid regular expression: unclosed"):
        front.start(front.prompt("Once"), params(StructuredOutputs(regex="(a")), lambda _: None)


def test_what_the_front_did_not_check_fails_alone(front: Front):
    """The engine compiles for itself: a request that came past the front ends with the reason."""
    engine = front.core
    assert isinstance(engine, Engine)
    with pytest.raises(ShardwiseError, match="does not compile"):
        list(engine.generate((9, 10), params(StructuredOutputs(regex="(a"))))
    number = engine.submit((9, 10), params(WANTED["json"]), lambda _: None)
    engine.abort(number)
    assert text(front, params(WANTED["choice"]))[0] in CHOICES


def test_nothing_is_compiled_for_who_has_gone(front: Front):
    engine = front.core
    assert isinstance(engine, Engine)
    first, second = (StructuredOutputs(regex=f"gone {n}") for n in range(2))
    ended: list[Ended] = []
    with engine.grammars._lock:  # the compiling thread stops at the first
        engine.submit((9, 10), params(first), lambda _: None)
        gone = engine.submit((9, 10), params(second), lambda event: ended.append(event) if isinstance(event, Ended) else None)
        engine.abort(gone)
        until = time.monotonic() + 60
        while not ended and time.monotonic() < until:
            time.sleep(0.005)
    assert ended == [Ended(gone)]
    assert text(front, params(WANTED["choice"]))[0] in CHOICES  # which is compiled after both
    assert first in engine.grammars._kept and second not in engine.grammars._kept


def test_time_passes_while_a_grammar_is_compiled(front: Front):
    """One's own or another's, for nobody else does anything."""
    engine = front.core
    assert isinstance(engine, Engine)
    told: list[tuple[str, Ended]] = []

    def ends(name: str) -> Callable[[Any], None]:
        return lambda event: told.append((name, event)) if isinstance(event, Ended) else None

    with engine.grammars._lock:  # the compiling thread stops at the first
        engine.submit((9, 10), params(StructuredOutputs(regex="late 0")), ends("none"))
        engine.submit((9, 10), params(StructuredOutputs(regex="late 1")), ends("late"), timeout_s=0.2)
        engine.submit((9, 10), params(StructuredOutputs(regex="late 2")), ends("later"), timeout_s=0.4)
        engine.submit((9, 10), params(StructuredOutputs(regex="late 3"), seed=1), ends("long"), timeout_s=600)
        until = time.monotonic() + 60
        while len(told) < 2 and time.monotonic() < until:
            time.sleep(0.005)
        assert [(name, ended.error) for name, ended in told] == [("late", TIME_UP), ("later", TIME_UP)]
    assert text(front, params(WANTED["choice"]))[0] in CHOICES  # which is compiled after all of them
    while len(told) < 4 and time.monotonic() < until:
        time.sleep(0.005)
    assert sorted((name, ended.error) for name, ended in told[2:]) == [("long", None), ("none", None)]


def test_through_the_library(folder: Path):
    with LLM(folder, tensor_parallel_size=2, dtype="float32", device="cpu", ranks="threads") as llm:
        outputs = llm.generate(["One", "Two"], params({"json": SCHEMA}, n=2, max_tokens=200))  # type: ignore[arg-type]
    for output in outputs:
        for choice in output.outputs:
            if choice.finish_reason == "stop":
                assert list(json.loads(choice.text)) == ["name", "kind", "sizes"]
