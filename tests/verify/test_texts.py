"""What the runs are compared on: built-in texts, files of the user's, all that a file can have wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardwise.engine.hub import bundled
from shardwise.engine.text import Tokenizer, open_tokenizer
from shardwise.errors import RequestError
from shardwise.spec.layout import PAGE_TOKENS
from shardwise.verify.drive import STEP_TOKENS
from shardwise.verify.texts import LIMIT_BYTES, LIMIT_TEXTS, built_in, fitted, random_ids, read_texts
from shardwise.verify.trace import Text


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return open_tokenizer(bundled())


def test_built_in_texts_cross_pages_and_steps(tokenizer):
    found = built_in(tokenizer)
    assert len({text.name for text in found}) == len(found) >= 5
    assert all(tokenizer.decode(text.ids) == text.text for text in found)
    assert max(len(text.ids) for text in found) > 2 * STEP_TOKENS
    assert any(len(text.ids) % PAGE_TOKENS for text in found)


def test_random_ids_are_many_and_always_the_same():
    found = random_ids(1000)
    assert found == random_ids(1000)
    assert all(len(set(text.ids)) > len(text.ids) / 2 and max(text.ids) < 1000 for text in found)


def test_lines_of_a_file(tokenizer, tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufeffOnce upon\r\n\n  \n été 日本\u2028 one\n".encode())
    found = read_texts(str(path), tokenizer)
    assert [(text.name, text.text) for text in found] == [("line 1", "Once upon"), ("line 4", " été 日本\u2028 one")]
    assert list(found[0].ids) == tokenizer.encode("Once upon")


def test_objects_of_a_jsonl_file(tokenizer, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"prompt": "Once\\nupon", "id": 7}\n{"prompt_token_ids": [4, 5, 6]}\n')
    assert [(t.text, len(t.ids) > 0) for t in read_texts(str(path), tokenizer)] == [("Once\nupon", True), (None, True)]
    assert read_texts(str(path), tokenizer)[1].ids == (4, 5, 6)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"", "is empty; give a prompt a line"),
        ("a.txt", b"\n \n", "is empty"),
        ("a.txt", b"caf\xe9", "is not UTF-8: byte 3 is 0xE9"),
        ("a.txt", b"x" * (LIMIT_BYTES + 1), "is longer than 16 MiB"),
        ("a.txt", b"x\n" * (LIMIT_TEXTS + 1), f"has {LIMIT_TEXTS + 1} prompts; {LIMIT_TEXTS} are the most"),
        ("a.jsonl", b"Once upon", "a.jsonl:1 is not JSON"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1 is not JSON"),
        ("a.jsonl", b'\n{"text": "x"}', 'a.jsonl:2 has no "prompt"'),
        ("a.jsonl", b'{"prompt": 3}', 'a.jsonl:1 has no "prompt" that is text'),
        ("a.jsonl", b'{"prompt_token_ids": [1, true]}', "that are whole numbers"),
        ("a.jsonl", b'{"prompt_token_ids": []}', "a.jsonl:1 is empty"),
        ("a.jsonl", b'{"prompt": "\\ud800"}', "a.jsonl:1: the prompt has half a surrogate pair"),
    ],
)
def test_files_that_cannot_be_used(name, data, message, tokenizer, tmp_path):
    path: Path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(RequestError, match=message):
        read_texts(str(path), tokenizer)


def test_files_that_cannot_be_read(tokenizer, tmp_path):
    for path, message in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(RequestError, match=message):
            read_texts(str(path), tokenizer)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(RequestError, match='the model has no tokenizer; give "prompt_token_ids"'):
        read_texts(str(tmp_path / "a.txt"), None)


def test_texts_are_clipped_to_the_context():
    texts = [Text("a", (1, 2, 3), "abc"), Text("b", tuple(range(20)), "long")]
    assert fitted(texts, 10, 4, 20) == [texts[0], Text("b", tuple(range(6)))]
    for wrong in (-1, 20):
        with pytest.raises(RequestError, match=f"c: token id {wrong} is not in this model's vocabulary of 20"):
            fitted([Text("c", (wrong,))], 10, 4, 20)
