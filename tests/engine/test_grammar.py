"""Grammars over real vocabularies: which ids come next, when an answer is complete, and bombs that harm nobody."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shardwise.engine.grammar import BROKEN, DEAD_END, KEPT, PACE_S, START_S, TOO_SLOW, Grammars, Matcher, plain
from shardwise.engine.grammar_check import GrammarCheck
from shardwise.engine.hub import bundled
from shardwise.engine.text import Tokenizer, open_tokenizer
from shardwise.errors import CheckpointError, RequestError
from shardwise.sched.structured import StructuredOutputs

VOCAB = 4096
ENDS = (1, 6)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return open_tokenizer(bundled())


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(bundled(), VOCAB)


@pytest.fixture(scope="module")
def check() -> GrammarCheck:
    return GrammarCheck(bundled(), VOCAB)


def ids(mask: bytes) -> set[int]:
    return {i for i in range(8 * len(mask)) if mask[i // 8] >> i % 8 & 1}


def matcher(grammars: Grammars, ends: tuple[int, ...] = ENDS, **wanted: object) -> Matcher:
    return grammars.compile(StructuredOutputs(**wanted)).matcher(ends)  # type: ignore[arg-type]


def test_masks_are_what_the_choices_begin_with(grammars: Grammars, tokenizer: Tokenizer):
    """Every id whose bytes a choice can go on with, those alone, and the ends where it is complete: by brute force."""
    choices = ["yes", "yesterday", "no", "nö 𝄞", 'a "b"\\\n\t\x01', " x"]
    own = [tokenizer.spell(i, first=False, skip_special_tokens=True) or b"" for i in range(VOCAB)]
    chance = random.Random(1)
    seen = set()
    for _ in range(40):
        one, tokens, text = matcher(grammars, choice=choices), list[int](), b""
        while True:
            one.follow(tokens)
            wanted = {i for i, s in enumerate(own) if s and any(c.encode().startswith(text + s) for c in choices)}
            found = ids(one.mask())
            assert found == wanted | (set(ENDS) if text.decode(errors="replace") in choices else set())
            assert one.finished() == (not wanted)
            if not wanted or (found & set(ENDS) and chance.random() < 0.5):
                break
            tokens.append(chance.choice(sorted(wanted)))
            text += own[tokens[-1]]
        seen.add(text.decode())
    assert len(seen) > 3 and seen <= set(choices)


@pytest.mark.parametrize(
    ("name", "change"),
    [("gpt2", 0), ("gpt2", -1000), ("llama2", 77), ("llama2", -1), ("qwen3", 267), ("smollm", 5), ("phi3", -1000)],
)
def test_every_tokenizer_and_any_number_of_logits(data: Path, name: str, change: int):
    """Logits may be more or fewer than the tokenizer has ids: whatever is drawn has a text, is no special token, and fits."""
    folder = data / "tokenizers" / name
    tokenizer = open_tokenizer(folder)
    vocab = tokenizer.vocab_size + change
    grammars = Grammars(folder, vocab)
    schema = {"type": "object", "properties": {"naïve": {"type": "string", "maxLength": 9}}, "required": ["naïve"]}
    one = matcher(grammars, (), json={**schema, "additionalProperties": False})
    chance, tokens = random.Random(vocab), list[int]()
    while not one.finished():
        allowed = ids(one.mask())
        assert allowed and max(allowed) < vocab and not allowed & tokenizer.special_ids
        tokens.append(chance.choice(sorted(allowed)))
        one.follow(tokens)
        assert len(tokens) < 200
    text = b"".join(tokenizer.spell(i, first=False, skip_special_tokens=True) or b"" for i in tokens).decode()
    assert list(json.loads(text)) == ["naïve"] and len(json.loads(text)["naïve"]) <= 9


def test_ends_are_there_exactly_when_it_is_complete(grammars: Grammars, tokenizer: Tokenizer):
    """Ids that are text too are no exception; `early` holds them back as long as anything else can come."""
    digit = tokenizer.encode("7", add_special_tokens=False)
    assert len(digit) == 1
    one = matcher(grammars, (6, *digit), regex="7?[a-c]{0,2}|7")
    assert set(digit) < ids(one.mask()) and 6 in ids(one.mask())
    assert not ids(one.mask(early=True)) & {6, *digit}
    one = matcher(grammars, regex="[a-c]{2}")
    assert not ids(one.mask()) & set(ENDS)
    one.follow(tokenizer.encode("ab", add_special_tokens=False))
    assert ids(one.mask()) == ids(one.mask(early=True)) == set(ENDS) and one.finished()


def test_a_dead_end_says_so(tmp_path: Path, tokenizer: Tokenizer):
    """A vocabulary that has no way to write what is asked for."""
    shutil.copytree(bundled(), tmp_path / "few", ignore=shutil.ignore_patterns("*.safetensors"))
    few = Grammars(tmp_path / "few", 40)
    assert not any(b"z" in (tokenizer.spell(i, first=False, skip_special_tokens=True) or b"") for i in range(40))
    one = matcher(few, regex="z")
    assert not any(one.mask()) and one.failed == DEAD_END and not one.finished()


def test_whitespace_is_bounded(grammars: Grammars, tokenizer: Tokenizer):
    """However it loves whitespace, a model comes to an end of it."""
    spelled = {i: tokenizer.spell(i, first=False, skip_special_tokens=True) for i in range(VOCAB)}
    blank = {i: len(text) for i, text in spelled.items() if text and not text.strip()}
    one, tokens = matcher(grammars, json={"type": "array", "items": {"type": "integer"}}), list[int]()
    tokens += tokenizer.encode("[", add_special_tokens=False)
    while True:
        one.follow(tokens)
        if not (here := sorted(ids(one.mask()) & set(blank))):
            break
        tokens.append(min(here, key=blank.__getitem__))
        assert len(tokens) < 30
    assert len(tokens) > 2


GRAMMARS = {
    'start: "a" INT\nINT: /[0-9]{2}/': r"a[0-9]{2}",
    'start: greeting " " NAME\ngreeting: "hi" | "bye"\nNAME: /[A-Z][a-z]{1,3}/\n': r"(hi|bye) [A-Z][a-z]{1,3}",
    'root ::= "a" [0-9]{2} ("x" | "y")': r"a[0-9]{2}(x|y)",
    'root ::= item ("," item)?\n# a comment\nitem ::= "<" [^<>\\n,]{1,3} ">"\n': r"<[^<>\n,]{1,3}>(,<[^<>\n,]{1,3}>)?",
    "root ::= sign? digits\nsign ::= [-+]\ndigits ::= [0-9] [0-9]?": r"[-+]?[0-9][0-9]?",
}


@pytest.mark.parametrize("text", GRAMMARS, ids=lambda text: text[:20])
def test_lark_and_gbnf(grammars: Grammars, tokenizer: Tokenizer, text: str):
    chance = random.Random(5)
    for _ in range(20):
        one, tokens = matcher(grammars, (), grammar=text), list[int]()
        while not one.finished() and len(tokens) < 60:
            tokens.append(chance.choice(sorted(ids(one.mask()))))
            one.follow(tokens)
        written = b"".join(tokenizer.spell(i, first=False, skip_special_tokens=True) or b"" for i in tokens).decode()
        assert re.fullmatch(GRAMMARS[text], written), written


UNUSABLE = [
    ({"regex": "(a"}, "structured_outputs.regex does not compile: invalid regular expression: unclosed group"),
    ({"regex": r"(?=a)b"}, "look-around, including look-ahead and look-behind, is not supported"),
    ({"regex": r"(a)\1"}, "backreferences are not supported"),
    ({"regex": r"[^\x00-\x{10FFFF}]"}, "structured_outputs.regex cannot be written: nothing in this model's vocabulary"),
    ({"grammar": "start: foo"}, 'structured_outputs.grammar does not compile: unknown name: "foo"'),
    ({"grammar": 'foo: "a"'}, "structured_outputs.grammar does not compile: no start rule found"),
    ({"grammar": '%llguidance {"no_forcing": false}\nstart: "a"'}, "sets %llguidance, which is not the request's to set"),
    ({"grammar": 'rot ::= "a"'}, "structured_outputs.grammar is not valid GBNF: No 'root' rule found"),
    ({"grammar": "root ::= " + "(" * 5000 + '"a"' + ")" * 5000}, "structured_outputs.grammar is nested too deep"),
    ({"json": {"type": "strin"}}, "structured_outputs.json does not compile: "),
    ({"json": {"type": "object", "uniqueItems": True, "not": {}}}, "structured_outputs.json does not compile: "),
    ({"json": {"oneOf": [{"type": "string"}, {"maxLength": 3}]}}, "Use anyOf, or name a discriminator."),
    ({"json": {"type": "array", "uniqueItems": True}}, 'structured_outputs.json does not compile: Unimplemented keys: ["uniq'),
    ({"json": {"$ref": "#/$defs/none"}}, "structured_outputs.json does not compile: "),
    ({"json": {"$ref": "#"}}, "structured_outputs.json cannot be written"),
    ({"json": {"type": "integer", "minimum": 5, "maximum": 3}}, "structured_outputs.json"),
]


@pytest.mark.parametrize(("wanted", "message"), UNUSABLE, ids=[message[-40:] for _, message in UNUSABLE])
def test_unusable(check: GrammarCheck, wanted: dict[str, object], message: str):
    with pytest.raises(RequestError, match=re.escape(message)) as raised:
        check(StructuredOutputs(**wanted))  # type: ignore[arg-type]
    said = str(raised.value)
    assert len(said) < 400 and "\n" not in said and "llguidance {" not in said and "<state>" not in said


def doubling(inner: str) -> dict[str, object]:
    """A schema that is 2^24 times as large once its references are followed."""
    defs: dict[str, object] = {
        f"d{i}": {inner: [{"$ref": f"#/$defs/d{i + 1}"}, {"$ref": f"#/$defs/d{i + 1}"}]}
        if inner != "properties"
        else {"type": "object", inner: {side: {"$ref": f"#/$defs/d{i + 1}"} for side in "lr"}, "required": ["l", "r"]}
        for i in range(24)
    }
    return {"$defs": {**defs, "d24": {"const": "x"}}, "$ref": "#/$defs/d0"}


def parts(count: int) -> list[dict[str, object]]:
    found = []
    for i in range(count):
        either = [{"type": "object", "properties": {f"{c}{i}": {"type": "integer"}}, "required": [f"{c}{i}"]} for c in "ab"]
        found.append({"anyOf": either})
    return found


AMBIGUOUS: dict[str, object] = {"grammar": 'start: a+\na: /[a-z]/ | a a | "(" a ")"\n'}
"""Cheap to begin with; the hundredth token takes a tenth of a second, and each one more than that before it."""

BOMBS: dict[str, dict[str, object]] = {
    "nested quantifiers": {"regex": "(a{1,1000}){1,1000}"},
    "three of them": {"regex": "((a{1,100}){1,100}){1,100}"},
    "a forced gigabyte": {"regex": "a{1000000000}"},
    "a forced gigabyte within": {"regex": "b?a{1000000000}"},
    "redos": {"regex": "(x+x+)+y"},
    "states": {"regex": "(a|b)*a(a|b){60}"},
    "optional": {"regex": "a?" * 5000 + "a" * 5000},
    "stars": {"regex": "a*" * 10000},
    "words": {"regex": "|".join(f"word{i}" for i in range(3000))},
    "parentheses": {"regex": "(" * 15000 + "a" + ")" * 15000},
    "classes": {"regex": r"(\p{L}|\p{N}|\w){1,2000}"},
    "properties": {"json": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(6000)}}},
    "values": {"json": {"enum": [f"value number {i}" for i in range(9000)]}},
    "all of any": {"json": {"allOf": parts(16)}},
    "doubling properties": {"json": doubling("properties")},
    "doubling all": {"json": doubling("allOf")},
    "doubling any": {"json": doubling("anyOf")},
    "arrays": {"json": {"type": "array", "items": {"const": "x"}, "minItems": 10**9}},
    "long": {"json": {"type": "string", "minLength": 10**9, "maxLength": 10**9}},
    "pattern": {"json": {"type": "string", "pattern": "^(a|b|ab)*c.{100}(x|y){1000}$", "minLength": 50}},
    "multiples": {"json": {"type": "integer", "multipleOf": 982451653}},
    "recursive": {"json": {"$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}}}, "$ref": "#/$defs/n"}},
    "rules": {"grammar": "start: r0\n" + "\n".join(f"r{i}: r{i + 1} r{i + 1}" for i in range(40)) + '\nr40: "a"'},
    "terminals": {"grammar": "start: T0\n" + "\n".join(f"T{i}: T{i + 1} T{i + 1}" for i in range(40)) + '\nT40: "a"'},
    "chain": {"grammar": "start: r0\n" + "\n".join(f'r{i}: "w" r{i + 1}?' for i in range(7000)) + '\nr7000: "e"'},
    "no end": {"grammar": 'start: "a" start'},
    "ambiguous": {"grammar": 'start: start start | "a" |'},
    "ambiguous later": AMBIGUOUS,
    "repetitions": {"grammar": 'start: ((("a"{1,1000}){1,1000}){1,1000}){1,1000}'},
    "choices": {"choice": [f"choice {i}" for i in range(1024)]},
    "fetch": {"json": {"$ref": "http://127.0.0.1:9/x.json"}},
    "file": {"json": {"$ref": "file:///etc/passwd"}},
}
GOOD = {"json": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}
MOST_S = 1.5


def test_bombs(check: GrammarCheck, grammars: Grammars, figures):
    """In any order, with good ones between: each is refused or done within its time, and what passes can be written with."""
    check(StructuredOutputs(**GOOD))  # type: ignore[arg-type]  # the process is there
    order = list(BOMBS)
    random.Random(11).shuffle(order)
    refused = []
    for name in order:
        wanted = StructuredOutputs(**BOMBS[name])  # type: ignore[arg-type]
        before = children_s(check)
        try:
            check(wanted)
        except RequestError as error:
            refused.append(name)
            assert len(str(error)) < 400
        else:
            compile_s, slowest_s = written(grammars, wanted)
            assert compile_s < MOST_S and slowest_s < 0.5, (name, compile_s, slowest_s)
            figures("grammar bombs", slowest_token_s=slowest_s, slowest_compile_s=compile_s)
        used = children_s(check) - before
        assert used < MOST_S, (name, used)
        figures("grammar bombs", slowest_check_s=used, bombs=1)
        fresh = {**GOOD["json"], "title": name}
        check(StructuredOutputs(json=fresh))
        assert not ids(matcher(grammars, json=fresh).mask()) & set(ENDS)
    assert {"stars", "properties", "parentheses", "chain", "all of any", "ambiguous later", "fetch", "file"} <= set(refused), (
        refused
    )
    assert not {"choices", "words", "values", "recursive", "redos"} & set(refused)


def written(grammars: Grammars, wanted: StructuredOutputs) -> tuple[float, float]:
    """CPU seconds to compile, and of the slowest of 100 tokens at random."""
    begun = time.process_time()
    one = grammars.compile(wanted).matcher(ENDS)
    compile_s, slowest_s = time.process_time() - begun, 0.0
    chance, tokens = random.Random(2), list[int]()
    for _ in range(100):
        begun = time.process_time()
        one.follow(tokens)
        allowed = one.mask()
        slowest_s = max(slowest_s, time.process_time() - begun)
        if not any(allowed) or one.finished():
            break
        tokens.append(chance.choice(sorted(ids(allowed) - set(ENDS))))
    return compile_s, slowest_s


def test_an_answer_that_takes_ever_longer_is_given_up(grammars: Grammars):
    """Whatever a check has let pass: the engine's other requests wait while a mask is made."""
    one = grammars.compile(StructuredOutputs(**AMBIGUOUS)).matcher(ENDS)  # type: ignore[arg-type]
    chance, tokens, begun = random.Random(2), list[int](), time.thread_time()
    while any(allowed := one.mask()) and len(tokens) < 1000:
        tokens.append(chance.choice(sorted(ids(allowed) - set(ENDS))))
        one.follow(tokens)
    assert one.failed == TOO_SLOW and not one.finished()
    assert time.thread_time() - begun < 2 * (START_S + PACE_S * len(tokens)) + 1


def children_s(check: GrammarCheck) -> float:
    """CPU seconds of the checking process and its children that have ended."""
    fields = Path(f"/proc/{check.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def test_a_lost_process_is_started_anew(tmp_path: Path):
    check = GrammarCheck(bundled(), VOCAB)
    check(StructuredOutputs(regex="a"))
    first = check.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    check(StructuredOutputs(regex="b"))
    assert check.pid not in (None, first)
    with pytest.raises(RequestError, match="unclosed group"):
        check(StructuredOutputs(regex="(b"))
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        GrammarCheck(tmp_path, VOCAB)(StructuredOutputs(regex="a"))


STOPS = [
    'start: a\na[stop="x"]: /.*/',
    'start: a\na [ capture, stop\t= "x"]: /.*/',
    'start: a "\\"" /[\\/"]+/ // "\na[stop=/x/]: /.*/',
    'start: y\ny: %lark {\nstart: a\na[stop=""]: /b/\n}',
]
NO_STOPS = [
    'start: "[stop=]" /[a-z][stop=\\/]/ # a[stop="x"]',
    'start: a // [stop="x"]\na[suffix="stop=", stop_capture="s"]: /stop="x"/',
    'start: %json {"const": {"stop=": "\\"stop="}}',
]


def test_rules_on_which_the_library_fails_are_refused(check: GrammarCheck):
    """By what they say, and not by what they quote. (As GBNF none can be said.)"""
    for text in STOPS:
        with pytest.raises(RequestError, match=r"^structured_outputs\.grammar has a rule with stop=.*; use suffix="):
            check(StructuredOutputs(grammar=text))
    for text in (*NO_STOPS, 'root ::= "stop=" [stop=]'):
        check(StructuredOutputs(grammar=text))
    begun = time.thread_time()
    for text in ("/" + "\\/" * 60_000, '"' + '\\"' * 60_000 + "\\", "stop" + " " * 120_000, '"\n' * 60_000):
        with pytest.raises(RequestError, match="does not compile"):
            Grammars(bundled(), VOCAB).compile(StructuredOutputs(grammar="start: " + text))
    assert time.thread_time() - begun < 20  # and not hours: nothing is read twice


FAILS = StructuredOutputs(regex="q", opening='opening: a{3}\na[stop="foo"]: "foo"')
"""The library fails on some ways to write this. Openings are the server's own, and have no such rules."""


def fails(grammars: Grammars) -> Matcher:
    """One that the library failed on."""
    for seed in range(200):
        one, tokens, chance = grammars.compile(FAILS).matcher(ENDS), list[int](), random.Random(seed)
        while some := sorted(ids(one.mask())):
            tokens.append(chance.choice(some))
            one.follow(tokens)
        if one.failed == BROKEN:
            return one
    raise AssertionError("it does not fail any more")


def test_a_failure_of_the_library_is_not_passed_on(check: GrammarCheck):
    """All that follow one grammar share what is lost then: it is compiled anew for who comes later, and others never know."""
    grammars = Grammars(bundled(), VOCAB)
    other = grammars.compile(StructuredOutputs(regex="[ab]+"))
    first = fails(grammars)
    assert not any(first.mask()) and not first.finished()
    assert any(grammars.compile(FAILS).matcher(ENDS).mask()) and fails(grammars) is not first
    assert grammars.compile(StructuredOutputs(regex="[ab]+")) is other and any(other.matcher(ENDS).mask())
    with pytest.raises(RequestError, match=re.escape(f"structured_outputs.regex cannot be written: {BROKEN}")):
        check(FAILS)
    check(StructuredOutputs(regex="q"))


def test_grammars_are_kept_as_far_as_memory_goes():
    """The last one in any case. Some that take 10 MiB each and more do not add up, and are not thought to take much less."""
    large = [StructuredOutputs(regex="x*y?" * 1500 + str(n)) for n in range(12)]
    grammars = Grammars(bundled(), VOCAB, most_bytes=1)
    first = grammars.compile(large[0])
    assert grammars.compile(large[0]) is first and grammars.kept_bytes == first.bytes > 1 << 20
    grammars.compile(large[1])
    assert grammars.compile(large[0]) is not first
    few = Grammars(bundled(), VOCAB, most_bytes=4 * first.bytes)
    for wanted in large:
        few.compile(wanted)
        assert few.kept_bytes <= max(4 * first.bytes, few.compile(wanted).bytes)
    small = [few.compile(StructuredOutputs(regex=f"a{n}")) for n in range(KEPT // 2)]
    assert [few.compile(StructuredOutputs(regex=f"a{n}")) for n in range(KEPT // 2)] == small
    every = Grammars(bundled(), VOCAB)
    every.open()
    opened = resident_bytes()
    held = [every.compile(wanted) for wanted in large[:4]]
    assert resident_bytes() - opened < 2 * sum(each.bytes for each in held)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_messages_are_short_and_ours():
    assert plain('at 2(8): unknown name: "x"\n   1 | %llguidance {}\n') == 'unknown name: "x"'
    assert plain("") == "no reason is given"
    assert len(plain("long " * 1000)) < 400
    assert plain("Too many items\n<state>\nTokens: secret") == "Too many items"


def test_plain_requests_do_not_load_it():
    code = (
        "import sys\n"
        "from shardwise import LLM, SamplingParams\n"
        "with LLM(ranks='threads') as llm:\n"
        "    llm.generate('Once', SamplingParams(max_tokens=2))\n"
        "    print('llguidance' in sys.modules)\n"
        "    print(llm.generate('Once', SamplingParams(structured_outputs={'choice': ['no']}))[0].outputs[0].text)\n"
        "    print('llguidance' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == ["False", "no", "True"], done.stderr
