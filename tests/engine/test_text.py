"""Text in and out: encoding as the library does, streams that add up to the whole text, stops that leak nothing."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tokenizers

from shardwise.engine.spelling import read_spelling
from shardwise.engine.stops import StopStrings
from shardwise.engine.text import Detokenizer, Tokenizer, open_tokenizer
from shardwise.errors import CheckpointError, RequestError
from tests.engine.test_stops import reference_cut

FOLDERS = {
    "gpt2": "tokenizers/gpt2",
    "llama2": "tokenizers/llama2",
    "qwen3": "tokenizers/qwen3",
    "smollm": "tokenizers/smollm",
    "phi3": "tokenizers/phi3",
    "TinyStories-656K": "weights/TinyStories-656K",
}
SEQUENCES = 2000  # a tokenizer, of each of two kinds; 24 000 together
PIECES = (
    *"aZ0 \n\t.é\u0301\u200d\u202e\ufffd\u2581Ġ",
    *(
        "  ",
        "Hello",
        " world",
        "नमस्ते",
        "ไทย",
        "漢字",
        "한글",
        "עברית",
        "👩‍👩‍👧‍👦",
        "🇩🇪",
        "👍🏽",
        "e\u0301",
        "\U0010ffff",
        "\x00",
        "\r\n",
    ),
    *("</s>", "<|endoftext|>", "<0xE2>", "<think>"),
)


@pytest.fixture(scope="session")
def opened(data: Path) -> dict[str, Tokenizer]:
    return {name: open_tokenizer(data / folder) for name, folder in FOLDERS.items()}


@pytest.fixture(params=FOLDERS)
def tokenizer(request: pytest.FixtureRequest, opened: dict[str, Tokenizer]) -> Tokenizer:
    return opened[request.param]


@pytest.fixture
def rng() -> random.Random:
    return random.Random(20250101)


def streamed(tokenizer: Tokenizer, ids: list[int], **options: bool) -> list[str]:
    stream = Detokenizer(tokenizer, **options)
    return [*(stream.push(token_id) for token_id in ids), stream.finish()]


def byte_ids(tokenizer: Tokenizer) -> dict[int, int]:
    """The id that spells each single byte, where the vocabulary has one."""
    found: dict[int, int] = {}
    for token_id in range(tokenizer.vocab_size):
        spelled = tokenizer.spell(token_id, first=False, skip_special_tokens=True)
        if spelled is not None and len(spelled) == 1:
            found[spelled[0]] = token_id
    return found


def library_text(library: tokenizers.Tokenizer, ids: list[int], skip: bool) -> str:
    """The library's text, with special tokens dropped by id: by text it lets those declared `normalized` through."""
    special = {n for n, token in library.get_added_tokens_decoder().items() if token.special}
    return library.decode([n for n in ids if not (skip and n in special)], skip_special_tokens=False)


def split_bytes(library: tokenizers.Tokenizer, ids: list[int]) -> bool:
    """Whether some run of `<0xE2>`-like tokens is not UTF-8: there, on purpose, the library's text is not ours."""
    run = b""
    for token in [*(library.id_to_token(n) or "" for n in ids), ""]:
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            run += bytes([int(token[3:5], 16)])
            continue
        try:
            run.decode()
        except UnicodeDecodeError:
            return True
        run = b""
    return False


def test_random_texts_stream_as_they_decode(tokenizer: Tokenizer, rng: random.Random) -> None:
    for _ in range(SEQUENCES):
        text = "".join(rng.choices(PIECES, k=rng.randrange(12)))
        text += "".join(chr(n) for n in (rng.randrange(0x110000) for _ in range(rng.randrange(3))) if not 0xD800 <= n < 0xE000)
        ids = tokenizer.encode(text, add_special_tokens=rng.random() < 0.5)
        pushes = streamed(tokenizer, ids)
        assert "".join(pushes) == tokenizer.decode(ids) == library_text(tokenizer._backend, ids, skip=True)
        if "\ufffd" not in tokenizer.decode(ids):
            assert not any("\ufffd" in push for push in pushes)


def test_random_ids_stream_as_they_decode(tokenizer: Tokenizer, rng: random.Random) -> None:
    single = list(byte_ids(tokenizer).values()) or [0]
    compared = 0
    for _ in range(SEQUENCES):
        ids = [
            rng.choice(single) if rng.random() < 0.3 else rng.randrange(tokenizer.id_limit) for _ in range(rng.randrange(12))
        ]
        skip = rng.random() < 0.5
        text = "".join(streamed(tokenizer, ids, skip_special_tokens=skip))
        assert text == tokenizer.decode(ids, skip_special_tokens=skip)
        if not split_bytes(tokenizer._backend, [n for n in ids if not (skip and n in tokenizer._skipped)]):
            compared += 1
            assert text == library_text(tokenizer._backend, ids, skip)
    assert compared > SEQUENCES // 4


def test_every_byte_split(tokenizer: Tokenizer) -> None:
    """Each character's bytes, one token a byte: nothing before the last, nothing replaced but what is broken."""
    single = byte_ids(tokenizer)
    if len(single) < 250:
        return  # TinyStories: no byte tokens, so no character can be split
    for character in ("é", "€", "नी", "👍🏽", "\U0010ffff", "\ufffd", "👩‍👧"):
        data = character.encode()
        pushes = streamed(tokenizer, [single[byte] for byte in data])
        assert "".join(pushes) == character
        assert [push for push in pushes if push] == list(character)
        for cut in range(1, len(data)):
            broken = "".join(streamed(tokenizer, [*(single[byte] for byte in data[:cut]), single[0x41]]))
            kept = data[:cut].decode(errors="ignore")
            assert broken.startswith(kept) and broken.endswith("A")
            assert set(broken[len(kept) : -1]) <= {"\ufffd"}
    for data in (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\x80\x80", b"\xf0\x9f\x98"):
        text = "".join(streamed(tokenizer, [single[byte] for byte in data]))
        assert text and set(text) == {"\ufffd"}


def test_the_first_space(opened: dict[str, Tokenizer]) -> None:
    llama2 = opened["llama2"]
    world = llama2.token_id("▁world")
    assert world is not None and llama2.bos_id is not None
    assert llama2.decode([world]) == "world"
    assert llama2.decode([llama2.bos_id, world]) == "world"
    assert llama2.decode([world, world]) == "world world"
    hello = llama2.encode("Hello")
    assert Detokenizer(llama2, after=hello).push(world) == " world"
    assert Detokenizer(llama2, after=[llama2.bos_id]).push(world) == "world"


def test_reading_on_completes_a_character(opened: dict[str, Tokenizer]) -> None:
    for name in ("gpt2", "llama2"):
        tokenizer = opened[name]
        single = byte_ids(tokenizer)
        euro = [single[byte] for byte in "€".encode()]
        stream = Detokenizer(tokenizer, after=[*tokenizer.encode("cost"), *euro[:2]])
        assert stream.push(euro[2]) + stream.finish() == "€"


def test_encoding_is_the_library_s(data: Path, opened: dict[str, Tokenizer], rng: random.Random) -> None:
    """Against transformers' plain fast tokenizer, which takes tokenizer.json as it is, and tokenizer_config.json's flags."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (a test dependency)")
    for name, folder in FOLDERS.items():
        ours = opened[name]
        kind = transformers.AutoTokenizer if name == "qwen3" else transformers.PreTrainedTokenizerFast
        theirs = kind.from_pretrained(str(data / folder))
        assert ours.token_id(theirs.eos_token) == theirs.eos_token_id
        for _ in range(100):
            text = "".join(rng.choices(PIECES, k=rng.randrange(10)))
            for special in (True, False):
                assert ours.encode(text, add_special_tokens=special) == theirs.encode(text, add_special_tokens=special), name


def test_a_long_text_holds_nobody_up(opened: dict[str, Tokenizer], rng: random.Random) -> None:
    """Others run while it is encoded, and what comes is what a short one's way gives."""
    tokenizer = opened["TinyStories-656K"]
    words = rng.choices([f" {rng.randrange(10**9):x}" for _ in range(1000)], k=40_000)
    ran, ended = 0, threading.Event()

    def run() -> None:
        nonlocal ran
        while not ended.wait(0.001):
            ran += 1

    thread = threading.Thread(target=run)
    thread.start()
    wait = time.monotonic() + 30
    while not ran and time.monotonic() < wait:
        time.sleep(0.001)
    before = ran
    ids = tokenizer.encode("".join(words), add_special_tokens=False)
    meanwhile = ran - before
    ended.set()
    thread.join()
    assert meanwhile >= 5
    assert ids == tokenizer._backend.encode("".join(words), add_special_tokens=False).ids


def test_what_the_files_say(opened: dict[str, Tokenizer]) -> None:
    assert {name: (t.eos_ids, t.bos_id, t.vocab_size) for name, t in opened.items()} == {
        "gpt2": ((), None, 50257),
        "llama2": ((2,), 1, 32000),
        "qwen3": ((151645,), None, 151669),
        "smollm": ((0,), 0, 49153),
        "phi3": ((32000,), 1, 32011),
        "TinyStories-656K": ((2,), 1, 2048),
    }
    assert opened["llama2"].encode("")[:1] == [1]
    assert opened["phi3"].encode("a")[:1] != [1]
    # Its tokenizer.json cuts and fills to 192, a leftover from training.
    assert len(opened["smollm"].encode("word " * 300)) > 192
    assert opened["smollm"].encode("") == []


@pytest.mark.parametrize("text", ["a\ud800", "\udfffb", b"bytes", None, 7])
def test_text_that_is_not_unicode_is_refused(text: object) -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(RequestError, match="prompt"):
        tokenizer.encode(text)  # type: ignore[arg-type]


@pytest.mark.parametrize("token_id", [-1, 7, 2**32, 2**70, "1", 1.0, None, True, [1]])
def test_ids_out_of_range_are_refused(token_id: object) -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(RequestError, match="0 to 6"):
        tokenizer.decode([token_id])  # type: ignore[list-item]
    with pytest.raises(RequestError, match="token id"):
        Detokenizer(tokenizer).push(token_id)  # type: ignore[arg-type]


def test_ids_between_vocabulary_and_embedding_have_no_text() -> None:
    tokenizer = tiny_tokenizer(model_vocab_size=64)
    assert (tokenizer.vocab_size, tokenizer.id_limit) == (7, 64)
    assert tokenizer.decode([0, 40, 1]) == tokenizer.decode([0, 1])


def test_the_eos_ids_are_the_union(tmp_path: Path) -> None:
    backend().save(str(tmp_path / "tokenizer.json"))
    write(tmp_path / "generation_config.json", {"eos_token_id": [5, 3]})
    write(tmp_path / "config.json", {"text_config": {"eos_token_id": 4, "vocab_size": 9, "bos_token_id": 6}})
    write(tmp_path / "tokenizer_config.json", {"eos_token": {"content": "a"}})
    tokenizer = open_tokenizer(tmp_path)
    assert (tokenizer.eos_ids, tokenizer.bos_id, tokenizer.id_limit) == ((5, 3, 4, 0), 6, 9)


def test_the_flags_overrule_the_file(tmp_path: Path) -> None:
    made = backend()
    made.post_processor = tokenizers.processors.TemplateProcessing(single="b $A", special_tokens=[("b", 1)])
    made.save(str(tmp_path / "tokenizer.json"))
    assert open_tokenizer(tmp_path).encode("a") == [1, 0]
    names = {"bos_token": "b", "eos_token": "c"}
    for flags, wanted in (
        ({"add_bos_token": False}, [0]),
        ({"add_bos_token": True}, [1, 0]),
        ({"add_bos_token": True, "add_eos_token": True}, [1, 0, 2]),
    ):
        write(tmp_path / "tokenizer_config.json", {**names, **flags})
        assert open_tokenizer(tmp_path).encode("a") == wanted
        assert open_tokenizer(tmp_path).encode("a", add_special_tokens=False) == [0]


def test_declared_tokens_are_added_or_refused(tmp_path: Path) -> None:
    backend().save(str(tmp_path / "tokenizer.json"))
    write(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": {"7": {"content": "<x>", "special": True}}})
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.encode("<x>") == [7]
    assert tokenizer.decode([7]) == "" and tokenizer.decode([7], skip_special_tokens=False) == "<x>"
    write(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": {"99": {"content": "<x>"}}})
    with pytest.raises(CheckpointError, match="99"):
        open_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json.*vocab\.json and no merges\.txt"):
        open_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no merges\.txt"):
        open_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("")
    write(tmp_path / "tokenizer_config.json", {"tokenizer_class": "OtherTokenizer"})
    with pytest.raises(CheckpointError, match="OtherTokenizer"):
        open_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(CheckpointError, match="tokenizer_config"):
        open_tokenizer(tmp_path)
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_tokenizer(tmp_path)


def test_a_decoder_that_cannot_stream_is_refused() -> None:
    with pytest.raises(CheckpointError, match="WordPiece"):
        read_spelling({"type": "WordPiece", "prefix": "##", "cleanup": True})
    with pytest.raises(CheckpointError, match="Strip"):
        read_spelling({"type": "Strip", "content": " ", "start": 1, "stop": 0})


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_metaspace_decodes_as_the_library(scheme: str) -> None:
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"▁a": 0, "b▁": 1, "▁": 2, "c": 3}, unk_token="c"))
    made.decoder = tokenizers.decoders.Metaspace(prepend_scheme=scheme)
    tokenizer = Tokenizer(made, config={}, special_tokens={})
    for ids in ([0], [2, 0], [1, 0], [3, 2, 1, 0], [0, 1, 2, 3]):
        assert tokenizer.decode(ids) == made.decode(ids)


def test_the_library_is_imported_only_when_needed() -> None:
    code = "import sys, shardwise.engine.text; print([n for n in ('torch', 'tokenizers', 'transformers') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_stops_over_tokens(tokenizer: Tokenizer, rng: random.Random) -> None:
    """A stop at a random place of a random text: across tokens, inside a character's bytes, the whole text, overlapping."""
    for _ in range(300):
        ids = tokenizer.encode("".join(rng.choices(PIECES[:24], k=rng.randrange(1, 14))))
        text = tokenizer.decode(ids)
        if not text:
            continue
        places = [sorted(rng.choices(range(len(text) + 1), k=2)) for _ in range(3)]
        stops = [text[a:b] for a, b in places if a < b] or [text]
        stream = Detokenizer(tokenizer, stops=StopStrings(stops))
        pushes = [*(stream.push(token_id) for token_id in ids), stream.finish()]
        assert "".join(pushes) == reference_cut(text, stops, include=False)
        assert stream.stops.matched in stops


def test_stops_at_the_edges() -> None:
    tokenizer = tiny_tokenizer()
    for stops, include, wanted in (
        (["abc"], False, ""),
        (["abc"], True, "abc"),
        (["c"], False, "ab"),
        (["bc", "b"], True, "ab"),
        (["bcd"], False, "abc"),
    ):
        stream = Detokenizer(tokenizer, stops=StopStrings(stops, include=include))
        assert "".join([stream.push(n) for n in (0, 1, 2)]) + stream.finish() == wanted
        assert stream.push(0) == "" or stream.stops.matched is None


def test_cost_does_not_grow_with_length() -> None:
    stream = Detokenizer(tiny_tokenizer(), stops=StopStrings(["abd", "never"]))
    times = []
    for _ in range(10):
        start = time.process_time()
        for n in range(20000):
            stream.push(n % 3)
        times.append(time.process_time() - start)
    assert min(times[-3:]) < 2 * min(times[:3])


def backend() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(tokenizers.models.BPE({character: n for n, character in enumerate("abcdefg")}, []))
    made.decoder = tokenizers.decoders.ByteLevel()
    return made


def tiny_tokenizer(**config: object) -> Tokenizer:
    return Tokenizer(backend(), config=config, special_tokens={})


def write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
