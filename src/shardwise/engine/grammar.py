"""What an answer must look like, as the ids that may come next: grammars compiled over a tokenizer's bytes by llguidance.

The library is imported with the first grammar. What a stranger sent is to pass `engine/grammar_check.py` first. It knows
neither requests nor draws.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardwise.engine.formats import bound_formats
from shardwise.engine.tag_grammar import tag_grammar
from shardwise.engine.text import Tokenizer, open_tokenizer
from shardwise.errors import RequestError
from shardwise.sched.structural_tag import read_tag
from shardwise.sched.structured import StructuredOutputs

if TYPE_CHECKING:
    import llguidance

KEPT, KEPT_BYTES = 64, 128 << 20
"""Compiled grammars that are kept for requests to come, and the memory that they may take together, as `estimate` has it."""

MESSAGE_CHARS = 300
WHITESPACE = r"( |\n[ \t]{0,20})?"
"""Between the parts of JSON: nothing, a space, or an indented line. A model can go on writing whitespace for ever otherwise."""

# Without it, runs of bytes that can only be so are walked to their end at once, past every limit: /a{1000000000}/ takes all
# memory there is (seen with llguidance 1.9.1).
_NO_FORCING = '%llguidance { "no_forcing": true }\n'

PANIC = "panic: "
"""How the library's own failures begin."""

START_S, PACE_S = 0.5, 0.005
"""CPU time that one answer may take to follow: to begin with, and for each token. The engine's other requests wait for it."""

BROKEN = "the grammar library failed on it, which is not the answer's fault; ask for the same in another way"
TOO_SLOW = f"the answer became too complex to follow: it takes more than {PACE_S * 1000:g} ms for each token"
DEAD_END = "nothing in this model's vocabulary goes on with the answer that is asked for"


class Matcher:
    """One answer as it is written. `ends` are the ids that may end it, once it is complete; `broke` is called if the library
    fails on it."""

    def __init__(self, core: llguidance.LLMatcher, vocab: int, ends: Sequence[int], broke: Callable[[], None]) -> None:
        self._core, self._vocab, self._ends, self._broke = core, vocab, ends, broke
        self._used = 0
        self._open = b""
        self._complete = False
        self._fresh = False
        self._left_s = START_S
        self.failed: str | None = None

    def follow(self, tokens: Sequence[int]) -> None:
        """Reads on to the end of `tokens`, which are all so far."""
        new = [token for token in tokens[self._used :] if token not in self._ends]
        self._fresh &= self._used == len(tokens)
        self._used = len(tokens)
        if new and not self.failed:
            self._left_s += PACE_S * len(new)
            with self._timed():
                taken = self._core.consume_tokens(new)
            if not taken:
                self._fail()

    def finished(self) -> bool:
        """Whether the answer is complete and nothing can be added to it."""
        self._look()
        return self._complete and not _some(self._open)

    def mask(self, *, early: bool = False) -> bytes:
        """The ids that may come next, as `Edit.mask` has them: none at a dead end. `early`: it is not to end yet if it can go
        on."""
        self._look()
        if not self._complete or (early and _some(self._open)):
            return self._open
        found = bytearray(self._open)
        for token in self._ends:
            found[token // 8] |= 1 << token % 8
        return bytes(found)

    def _look(self) -> None:
        """What may come next, ends aside, and whether it is complete as it is."""
        if self._fresh:
            return
        self._fresh = True
        found = bytearray(-(-self._vocab // 8))
        self._complete = False
        if not self.failed:
            with self._timed():
                bits = self._core.compute_bitmask()
            if self._core.is_error():
                self._fail()
            else:
                self._complete = self._core.is_accepting()
                found[:] = bits[: len(found)]
                found[-1] &= 0xFF >> -self._vocab % 8
                for token in self._ends:
                    found[token // 8] &= ~(1 << token % 8) & 0xFF
        if not self.failed and self._left_s < 0:
            self.failed, self._complete, found = TOO_SLOW, False, bytearray(len(found))
        self._open = bytes(found)
        if not self.failed and not self._complete and not _some(found):
            self.failed = DEAD_END

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """An ambiguous grammar takes longer with every token, within all limits that the library has."""
        begun = time.thread_time()
        yield
        self._left_s -= time.thread_time() - begun

    def _fail(self) -> None:
        reason = self._core.get_error()
        if reason.startswith(PANIC):
            self.failed = BROKEN
            self._broke()
            return
        dead = "NoExtension" in reason or not reason
        self.failed = DEAD_END if dead else f"the answer became too complex to follow: {plain(reason)}"


def _some(mask: bytes | bytearray) -> bool:
    """Whether any bit is set; `any` would look at each byte in Python."""
    return mask.count(0) < len(mask)


class Grammar:
    """A compiled grammar of about so many `bytes`. It stays as it is: each answer has a matcher of its own. But what matchers
    share is lost if the library fails in one of them; it is `broken` then."""

    def __init__(self, core: llguidance.LLMatcher, vocab: int, bytes: int) -> None:
        self._core, self._vocab = core, vocab
        self.bytes, self.broken = bytes, False

    def matcher(self, ends: Sequence[int]) -> Matcher:
        """One at the beginning of an answer; `ends` as there, all of them ids of the model."""
        return Matcher(self._core.deep_copy(), self._vocab, ends, self._break)

    def _break(self) -> None:
        self.broken = True


SOURCE_COST, TIME_COST = 64, 256 << 20
"""Bytes of memory for each byte of a grammar's source, and for each second that it took to compile."""


def estimate(source_bytes: int, compile_s: float) -> int:
    """About how many bytes a compiled grammar takes; the library does not say. Its source alone tells little: schemas take 30
    to 220 bytes for each of theirs, but three thousand `a*` 3 000, since what stands in a row is multiplied. What is built
    takes time to build, though: never more than 250 KiB were found for a millisecond of CPU, and usually a quarter of that
    (schemas, rules and regular expressions of 50 bytes to 75 KB, llguidance 1.9.1, 2.5 GHz)."""
    return SOURCE_COST * source_bytes + int(TIME_COST * compile_s)


class Grammars:
    """Compiles for one model: `vocab` logits, and the tokenizer in `folder`, which is opened with the first grammar. What was
    used last is kept, as far as it fits into `most_bytes`. Safe to share between threads."""

    def __init__(self, folder: Path, vocab: int, most_bytes: int = KEPT_BYTES) -> None:
        self._folder, self._vocab, self._most = folder, vocab, most_bytes
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._specials: dict[str, int] = {}
        self._kept: OrderedDict[StructuredOutputs, Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def open(self) -> None:
        """Opens the tokenizer, which takes up to a second (150 000 ids). CheckpointError where there is none."""
        with self._lock:
            self._opened()

    def compile(self, wanted: StructuredOutputs) -> Grammar:
        """RequestError, which says why, for what does not compile."""
        with self._lock:
            found = self._kept.get(wanted)
            if found is None or found.broken:
                found = self._kept[wanted] = self._compiled(wanted)
            self._kept.move_to_end(wanted)
            while len(self._kept) > 1 and (len(self._kept) > KEPT or self.kept_bytes > self._most):
                self._kept.popitem(last=False)
            return found

    @property
    def kept_bytes(self) -> int:
        """What the grammars that are kept take, by the estimate."""
        return sum(each.bytes for each in self._kept.values())

    def _compiled(self, wanted: StructuredOutputs) -> Grammar:
        from llguidance import LLMatcher, LLParserLimits

        tokenizer, begun = self._opened(), time.thread_time()
        text = source(wanted, self._specials)

        # About a fifth of the defaults in time and memory; a schema of 300 properties is far below.
        limits = LLParserLimits(
            initial_lexer_fuel=500_000,
            step_lexer_fuel=100_000,
            step_max_items=25_000,
            max_lexer_states=10_000,
            max_grammar_size=200_000,
            precompute_large_lexemes=False,
            verbose_errors=False,
        )
        found = LLMatcher(tokenizer, text, log_level=0, limits=limits)
        if found.is_error():
            raise RequestError(f"{wanted.said} does not compile: {plain(found.get_error())}")
        return Grammar(found, self._vocab, estimate(len(text.encode()), time.thread_time() - begun))

    def _opened(self) -> llguidance.LLTokenizer:
        if self._tokenizer is None:
            opened = open_tokenizer(self._folder)
            self._specials = {opened.token_text(i): i for i in sorted(opened.special_ids) if i < self._vocab}
            self._tokenizer = _library_tokenizer(opened, self._vocab)
        return self._tokenizer


class _Spellings:
    """A vocabulary as llguidance reads one (its TokenizerWrapper): the bytes of each id, none for ids that have no text.

    One id is added, after the model's own: the end, for the library; which ids end an answer each request says for itself.
    """

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, vocab: int) -> None:
        self.eos_token_id, self.bos_token_id = vocab, None
        self.special_token_ids = [*(i for i in tokenizer.special_ids if i < vocab), vocab]
        # A name behind 0xff is how the library marks what is no text.
        marked = {i: b"\xff" + tokenizer.token_text(i).encode() for i in tokenizer.special_ids}
        spelled = range(min(vocab, tokenizer.vocab_size))
        self.tokens = [marked.get(i) or tokenizer.spell(i, first=False, skip_special_tokens=False) or b"" for i in spelled]
        self.tokens += [b""] * (vocab - len(self.tokens)) + [b"\xff<|end of the answer|>"]

    def __call__(self, text: str) -> list[int]:
        """Asked when the library wants to know how text is cut: never, where nothing is forced."""
        return []


def _library_tokenizer(tokenizer: Tokenizer, vocab: int) -> llguidance.LLTokenizer:
    from llguidance import LLTokenizer

    # The stubs ask for their own class, the library for its attributes.
    return LLTokenizer(_Spellings(tokenizer, vocab), n_vocab=vocab + 1, eos_token=vocab)  # type: ignore[arg-type]


def source(wanted: StructuredOutputs, specials: Mapping[str, int] | None = None) -> str:
    """The grammar in llguidance's own form. RequestError for one that cannot be brought into it. `specials`: ids of special
    tokens by their texts."""
    form = _form(wanted, specials or {})
    if wanted.opening is None:
        return form
    # A grammar of its own, so that names and what one ignores mean nothing in the other.
    first = {"lark_grammar": f"{_NO_FORCING}start: opening @form\n{wanted.opening}"}
    return json.dumps({"grammars": [first, {"name": "form", "lark_grammar": form}]}, ensure_ascii=False)


def _form(wanted: StructuredOutputs, specials: Mapping[str, int]) -> str:
    if wanted.kind in ("json", "json_object"):
        return f"{_NO_FORCING}start: {_json(json.loads(wanted.json) if isinstance(wanted.json, str) else {'type': 'object'})}"
    if wanted.choice is not None:
        return f"{_NO_FORCING}start: CHOICE\nCHOICE: " + " | ".join(json.dumps(text) for text in wanted.choice)
    if wanted.regex is not None:
        return f"{_NO_FORCING}start: {_regex(wanted.regex)}"
    if isinstance(wanted.structural_tag, str):
        tag = read_tag(wanted.said, json.loads(wanted.structural_tag))
        return _NO_FORCING + tag_grammar(tag, specials, _json, _regex)
    return _NO_FORCING + _lark(wanted.grammar or "", wanted.said)


def _json(schema: Mapping[str, Any]) -> str:
    """A rule's body that is JSON of the schema."""
    bound = {**bound_formats(schema), "x-guidance": {"whitespace_pattern": WHITESPACE}}
    return f"%json {json.dumps(bound, ensure_ascii=False)}"


def _regex(text: str) -> str:
    from llguidance import regex_to_lark

    # Line by line nothing else ends a regular expression in Lark.
    return f"/{regex_to_lark(text)}/"


# What may hold any characters in Lark: strings, JSON's among them, comments, regular expressions, special tokens. Also where
# one has no end, so that nothing is read twice.
_LITERALS = re.compile(r'"(?:\\.?|[^"\\\n])*(?:"|\Z|(?=\n))|//[^\n]*|#[^\n]*|/(?:\\.?|[^/\\])+(?:/|\Z)|<[^<>\s]+>', re.DOTALL)
# llguidance 1.9.1 panics on some answers of such rules, and then on all others that follow the same grammar (seen with
# `start: a{3}` and `a[stop="foo"]: "foo"`).
_STOPS = re.compile(r"\bstop\s*=")


def _lark(text: str, name: str) -> str:
    """Lark out of Lark or GBNF. RequestError, which calls it `name`, for what it must not have."""
    if "%llguidance" in text:
        raise RequestError(f"{name} sets %llguidance, which is not the request's to set; leave it out")
    if not re.search(r"::=", text) or re.search(r"(?m)^\s*start\s*:(?!:=)", text):
        if _STOPS.search(_LITERALS.sub(" ", text)):
            raise RequestError(f"{name} has a rule with stop=, on which the grammar library can fail; use suffix=, or [lazy]")
        return text
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return gbnf_to_lark(text).replace("%llguidance {}", "", 1)
    except RecursionError:
        raise RequestError(f"{name} is nested too deep") from None
    except Exception as error:  # the converter's own, plain ones among them
        raise RequestError(f"{name} is not valid GBNF: {str(error)[:MESSAGE_CHARS]}") from None


def plain(message: str) -> str:
    """What llguidance says was wrong, in one short line: without positions in text that nobody sent, and without its state."""
    lines = [line.strip() for line in message.split("<state>")[0].split("<non-verbose/>")[0].splitlines() if line.strip()]
    first = re.sub(r"^(at )?\d+\(\d+\): ", "", lines[0]) if lines else "no reason is given"
    first = re.sub(r"^failed to (compile JSON schema|parse \"%json\"): ", "", first)
    if first.startswith("invalid regex"):
        first = "invalid regular expression"
    why = next((line.removeprefix("error: ") for line in lines[1:] if line.startswith("error: ")), "")
    text = f"{first}: {why}" if why else first
    # The option is not the request's to set: what it would make of a schema accepts more than the schema does.
    text = re.sub(r"Enable 'coerce_one_of'.*", "Use anyOf, or name a discriminator.", text)
    return text if len(text) <= MESSAGE_CHARS else f"{text[:MESSAGE_CHARS]}…"
