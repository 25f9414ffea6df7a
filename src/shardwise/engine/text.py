"""Text in and out of the model: a tokenizer opened from a checkpoint folder, and text rebuilt token by token.

Encoding is the `tokenizers` library's. Decoding is ours, because a stream must give each character once, whole, and at a
cost per token that does not grow with the answer. Knows nothing of requests, chats or sampling.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardwise.engine.spelling import read_spelling
from shardwise.engine.stops import StopStrings
from shardwise.errors import CheckpointError, ConfigError, RequestError
from shardwise.sched.checks import check_text
from shardwise.spec import checkpoint

if TYPE_CHECKING:
    import tokenizers

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

LONG_CHARS = 4096
"""A longer text takes more than a millisecond to encode: an event loop beside it must not wait for that."""

# How a Qwen2Tokenizer without tokenizer.json splits text (transformers, tokenization_qwen2.py).
_QWEN2_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# What is not UTF-8 becomes U+FFFD as in the `tokenizers` library: of byte tokens each byte, else each maximal subpart.
_EACH_BYTE = "shardwise.each_byte"
codecs.register_error(_EACH_BYTE, lambda error: ("\ufffd" * (error.end - error.start), error.end))  # type: ignore[attr-defined]


class Tokenizer:
    """A checkpoint's tokenizer: text to ids and back. Made by `open_tokenizer`; safe to share between threads.

    `special_tokens`: names such as `bos_token` to their text. `eos_ids`: every id that ends an answer, the checkpoint's own
    order. `bos_id`: the id that begins a prompt, or None. `vocab_size`: one more than the highest id that has a text.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, config: Mapping[str, Any], special_tokens: Mapping[str, str]) -> None:
        """`config`: tokenizer_config.json, with `eos_ids`, `bos_id` and `model_vocab_size` from the model's own files."""
        self._backend = backend
        self.spelling = read_spelling(None if backend.decoder is None else json.loads(backend.decoder.__getstate__()))
        # By id: the library compares normalised text with plain, and so lets tokens declared `normalized` through.
        self._skipped = frozenset(n for n, token in backend.get_added_tokens_decoder().items() if token.special)
        self._spelled: dict[tuple[int, bool], bytes] = {}
        self._texts: dict[int, str] = {}
        self.special_tokens = dict(special_tokens)
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        # A model's embedding is often padded beyond its vocabulary, so an id there can be sampled: it has no text.
        self.id_limit = max(self.vocab_size, config.get("model_vocab_size") or 0)
        bos, eos = (self.token_id(special_tokens.get(name)) for name in ("bos_token", "eos_token"))
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys((*config.get("eos_ids", ()), *_integers(eos))))
        self.bos_id: int | None = config.get("bos_id") if bos is None else bos
        self._prefix, self._suffix = self._frame(bos, eos, config)

    def _frame(self, bos: int | None, eos: int | None, config: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        """The ids that stand before and after every plain prompt."""
        # The flags, where they are given, overrule the tokenizer.json; one alone says that the other is off.
        if config.get("add_bos_token") is not None or config.get("add_eos_token") is not None:
            wanted = (("add_bos_token", bos), ("add_eos_token", eos))
            before, after = ([n] if config.get(name) and n is not None else [] for name, n in wanted)
            return before, after
        plain, framed = (self._backend.encode("a", add_special_tokens=special).ids for special in (False, True))
        start = next((n for n in range(len(framed)) if framed[n : n + len(plain)] == plain), 0)
        return framed[:start], framed[start + len(plain) :]

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids that are no text."""
        return self._skipped

    def token_id(self, token: str | None) -> int | None:
        """The id of one vocabulary entry, or None if there is no such entry."""
        return None if token is None else self._backend.token_to_id(token)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of `text`, in the frame (a bos, often) that the checkpoint puts around prompts if `add_special_tokens`.

        The text of a special token inside `text` becomes that token. Raises RequestError for text that is not Unicode.
        """
        check_text(text, "the prompt")
        if len(text) > LONG_CHARS:
            # Of the library's calls, only those for batches let other threads run meanwhile (seen with tokenizers 0.23).
            ids: list[int] = self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
        else:
            ids = self._backend.encode(text, add_special_tokens=False).ids
        return [*self._prefix, *ids, *self._suffix] if add_special_tokens else ids

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `ids`: what a `Detokenizer` gives for them in all.

        As the `tokenizers` library's, but where `<0xE2>`-like byte tokens do not make UTF-8, only the bytes at fault become
        U+FFFD, each one; the library gives up the valid characters next to them too, which no stream can take back.
        Raises RequestError for an id out of range.
        """
        stream = Detokenizer(self, skip_special_tokens=skip_special_tokens)
        return "".join([stream.push(token_id) for token_id in ids]) + stream.finish()

    def check_ids(self, ids: Iterable[int]) -> None:
        """Raises RequestError if any id is not one of this model's."""
        for token_id in ids:
            if type(token_id) is not int or not 0 <= token_id < self.id_limit:
                raise RequestError(f"token id {token_id!r} is out of range: this model's ids are 0 to {self.id_limit - 1}")

    def token_text(self, token_id: int) -> str:
        """One token by itself, special ones too: U+FFFD for a part of a character, "" for one without a text."""
        if (text := self._texts.get(token_id)) is None:
            spelled = self.spell(token_id, first=False, skip_special_tokens=False) or b""
            text = self._texts[token_id] = spelled.decode(errors="replace")
        return text

    def spell(self, token_id: int, *, first: bool, skip_special_tokens: bool) -> bytes | None:
        """The bytes that a token adds to the text, or None for one that adds nothing and does not count as the first."""
        if type(token_id) is not int or not 0 <= token_id < self.id_limit:
            self.check_ids((token_id,))  # says what is wrong
        if skip_special_tokens and token_id in self._skipped:
            return None
        spelled = self._spelled.get((token_id, first))
        if spelled is None and (entry := self._backend.id_to_token(token_id)) is not None:
            spelled = self._spelled[token_id, first] = self.spelling.spell(entry, first=first)
        return spelled


class Detokenizer:
    """Text from ids as they come: whole characters only, each once; all pushes and `finish` together are the text.

    Memory and cost per token do not grow with the text. `stops.matched` is the stop string that ended it, or None.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stops: StopStrings | None = None,
        skip_special_tokens: bool = True,
        after: Sequence[int] = (),
    ) -> None:
        """`after`: the ids to read on from, if there are any: the first space is kept, a character begun there completed."""
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        self.stops = StopStrings(()) if stops is None else stops
        self._pending = b""  # the start of a character
        self._first = True
        self._lead = tokenizer.spelling.lead[1]
        self._errors = _EACH_BYTE if tokenizer.spelling.byte_tokens else "replace"
        self._read_on(after)

    def _read_on(self, after: Sequence[int]) -> None:
        """Take the state that the end of `after` leaves: four bytes of text are enough to know it."""
        start, found = len(after), 0
        while start and found < 4:
            start -= 1
            found += len(self._tokenizer.spell(after[start], first=False, skip_special_tokens=self._skip) or b"")
        for token_id in after[start:]:
            self._text(token_id)

    def push(self, token_id: int) -> str:
        """The text that `token_id` makes certain, often empty. Raises RequestError for an id out of range."""
        return self.stops.push(self._text(token_id))

    def finish(self) -> str:
        """The rest: text held back for a stop string, and U+FFFD for a character that was never completed."""
        text = self._characters(b"", final=True)
        return self.stops.push(text) + self.stops.finish()

    def _text(self, token_id: int) -> str:
        spelled = self._tokenizer.spell(token_id, first=self._first, skip_special_tokens=self._skip)
        if spelled is None:
            return ""
        self._first = False
        return self._characters(spelled, final=False)

    def _characters(self, data: bytes, *, final: bool) -> str:
        data = self._pending + data
        text, used = codecs.utf_8_decode(data, self._errors, final)
        self._pending = data[used:]
        while self._lead and text:
            rest = text.removeprefix(self._tokenizer.spelling.lead[0])
            text, self._lead = rest, self._lead - 1 if rest != text else 0
        return text


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file. Raises CheckpointError for anything else in it."""
    if not path.is_file():
        return {}
    try:
        return checkpoint.read_json(path)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def read_special_tokens(folder: Path) -> dict[str, str]:
    """Names such as `eos_token` to their text; tokenizer_config.json before special_tokens_map.json."""
    config, listed = read_json(folder / "tokenizer_config.json"), read_json(folder / "special_tokens_map.json")
    found = {name: config.get(name, listed.get(name)) for name in NAMED_TOKENS}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in found.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder: tokenizer.json, or vocab.json with merges.txt.

    Raises CheckpointError if the files are missing, damaged, or of a kind that is not supported.
    """
    import tokenizers  # 40 ms that only those who tokenise should pay

    config = read_json(folder / "tokenizer_config.json")
    special = read_special_tokens(folder)
    path = folder / "tokenizer.json"
    try:
        backend = tokenizers.Tokenizer.from_file(str(path)) if path.is_file() else _from_vocabulary(folder, config)
        # Both are left over from training in some files, and would cut or fill every prompt.
        backend.no_truncation()
        backend.no_padding()
        _add_tokens(backend, config, special, folder)
        return Tokenizer(backend, config={**config, **_model_ids(folder)}, special_tokens=special)
    except CheckpointError:
        raise
    except Exception as error:  # the library raises plain Exception, and a damaged config may be of any shape
        raise CheckpointError(f"the tokenizer files in {folder} cannot be read ({error}); download them again") from error


def _from_vocabulary(folder: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer from vocab.json and merges.txt."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    missing = [path.name for path in (vocab, merges) if not path.is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} has no tokenizer.json, and without it no {' and no '.join(missing)} to use instead; copy them from "
            "where the model comes from"
        )
    kind = str(config.get("tokenizer_class") or "GPT2Tokenizer").removesuffix("Fast")
    if kind not in ("GPT2Tokenizer", "Qwen2Tokenizer"):
        raise CheckpointError(
            f"{folder} has no tokenizer.json, and how a {kind} splits text is not known here (a GPT2Tokenizer and a "
            "Qwen2Tokenizer are). Saving the tokenizer again with a recent transformers writes a tokenizer.json"
        )
    backend = Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    qwen = kind == "Qwen2Tokenizer"
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space")), use_regex=not qwen)
    backend.pre_tokenizer, backend.decoder = to_bytes, decoders.ByteLevel()
    if qwen:
        backend.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(_QWEN2_SPLIT), behavior="isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    return backend


def _add_tokens(backend: tokenizers.Tokenizer, config: Mapping[str, Any], special: Mapping[str, str], folder: Path) -> None:
    """Add the tokens that tokenizer_config.json declares and the vocabulary file lacks."""
    from tokenizers import AddedToken

    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    flags = ("lstrip", "rstrip", "single_word", "normalized", "special")
    for declared_id, fields in sorted((config.get("added_tokens_decoder") or {}).items(), key=lambda item: int(item[0])):
        token = fields["content"]
        if token in known:
            continue
        backend.add_tokens([AddedToken(token, **{name: fields[name] for name in flags if name in fields})])
        if (given := backend.token_to_id(token)) != int(declared_id):
            raise CheckpointError(
                f"{folder}: tokenizer_config.json gives {token!r} the id {declared_id}, but the vocabulary file leads to "
                f"{given}; the files are of different models"
            )
    named = [token for token in special.values() if token not in known and backend.token_to_id(token) is not None]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in dict.fromkeys(named)])


def _model_ids(folder: Path) -> dict[str, Any]:
    """What generation_config.json and config.json say of ids: `eos_ids` (their union), `bos_id`, `model_vocab_size`."""
    model = read_json(folder / "config.json")
    inner = model.get("text_config")
    sources = [read_json(folder / "generation_config.json"), model, inner if isinstance(inner, dict) else {}]
    eos = [n for source in sources for n in _integers(source.get("eos_token_id"))]
    bos = [n for source in sources for n in _integers(source.get("bos_token_id"))]
    sizes = [n for source in sources for n in _integers(source.get("vocab_size"))]
    return {"eos_ids": eos, "bos_id": bos[0] if bos else None, "model_vocab_size": max(sizes, default=0)}


def _integers(value: object) -> list[int]:
    """The integers of one or a list of them, as eos_token_id may be."""
    return [n for n in (value if isinstance(value, list) else [value]) if type(n) is int]
