"""Whatever people give as prompts is read or refused by its place."""

from __future__ import annotations

import re

import numpy as np
import pytest

from shardwise.engine.front import bad_ids
from shardwise.engine.hub import bundled
from shardwise.engine.prompts import conversations, last_ids, listed, read_chat, read_prompt
from shardwise.engine.template import open_template
from shardwise.engine.text import Tokenizer, open_tokenizer
from shardwise.errors import RequestError


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return open_tokenizer(bundled())


def test_one_or_many():
    assert listed("a") == ["a"] and listed(["a", "b"]) == ["a", "b"] and listed(("a",)) == ["a"]
    assert listed([1, 2]) == [[1, 2]] and listed([[1, 2], "a"]) == [[1, 2], "a"]
    assert listed({"prompt": "a"}) == [{"prompt": "a"}]
    assert listed(np.array([[1, 2], [3, 4]])) == [[1, 2], [3, 4]]
    assert listed(range(3)) == [[0, 1, 2]]
    for given in (None, 5, 1.5, b"a", {1, 2}, iter("a")):
        with pytest.raises(RequestError, match="prompts is "):
            listed(given)
    with pytest.raises(RequestError, match="prompts is empty"):
        listed([])


def test_kinds_of_prompts(tokenizer):
    ids = tuple(tokenizer.encode("Hello"))
    assert read_prompt("Hello", tokenizer).ids == read_prompt({"prompt": "Hello"}, tokenizer).ids == ids
    for given in (list(ids), ids, np.array(ids), {"prompt_token_ids": ids}, {"prompt_token_ids": np.array(ids, np.int32)}):
        found = read_prompt(given, tokenizer)
        assert (found.text, found.ids) == (None, ids) and all(type(token) is int for token in found.ids)
    both = read_prompt({"prompt": "shown", "prompt_token_ids": ids, "cache_salt": "mine"}, tokenizer)
    assert (both.text, both.ids, both.tenant) == ("shown", ids, "mine")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "prompt 3 is None; it takes text"),
        (7, "prompt 3 is 7; it takes text"),
        (b"Hello", "prompt 3 is b'Hello'; it takes text"),
        ([1.5], "token id 0 of prompt 3 is 1.5; it takes a whole number"),
        ([1, -1], "token id 1 of prompt 3 is -1"),
        ([True], "token id 0 of prompt 3 is True"),
        (["a"], "token id 0 of prompt 3 is 'a'"),
        ([2**40], "token id 0 of prompt 3 is 1099511627776"),
        ([], "prompt 3 is empty"),
        ("a\ud83d", "prompt 3 has half a surrogate pair (U+D83D) at character 1"),
        ({}, "prompt 3 is {}; it takes text"),
        ({"prompt": 5}, "prompt of prompt 3 must be a string, not int"),
        ({"promt": "a"}, "prompt 3 has an unknown key 'promt', nearest: prompt"),
        ({"prompt": "a", "multi_modal_data": {}}, "prompt 3 has an unknown key 'multi_modal_data'"),
        ({"prompt_token_ids": 5}, "prompt 3 is 5"),
        ({"prompt": "a", "cache_salt": 5}, "cache_salt of prompt 3 must be a string"),
    ],
)  # fmt: skip
def test_refused(tokenizer, given, message):
    with pytest.raises(RequestError, match=re.escape(message)):
        read_prompt(given, tokenizer, "prompt 3")


def test_an_empty_text_is_a_prompt_where_the_tokenizer_begins_it(tokenizer):
    if frame := tokenizer.encode(""):
        assert read_prompt("", tokenizer).ids == tuple(frame)
    else:
        with pytest.raises(RequestError, match="the prompt is empty"):
            read_prompt("", tokenizer)


def test_a_text_begins_as_it_is_told(tokenizer):
    bare = read_prompt("Hello", tokenizer, add_special_tokens=False)
    assert (bare.text, bare.ids) == ("Hello", tuple(tokenizer.encode("Hello", add_special_tokens=False)))
    with pytest.raises(RequestError, match="the prompt is empty"):
        read_prompt("", tokenizer, add_special_tokens=False)


def test_the_last_ids():
    ids = tuple(range(12))
    for most, spare, wanted in ((None, 0, ids), (5, 0, ids[-5:]), (10, 3, ids[-10:]), (-1, 0, ids[-10:]), (-1, 1, ids[-9:])):
        assert last_ids(ids, most, 10, spare=spare) == wanted
    assert last_ids(ids[:3], 5, 10) == last_ids(ids[:3], -1, 10, spare=1) == ids[:3]
    for most in (0, -2, 11):
        with pytest.raises(RequestError, match=f"^truncate is {most}; it takes 1 to 10, .* or -1"):
            last_ids(ids, most, 10, name="truncate")


def test_conversations(tokenizer):
    said = [{"role": "user", "content": "Hi"}]
    assert conversations(said) == [said] and conversations([said, said]) == [said, said]
    for given in ([], None, "Hi", {"role": "user"}):
        with pytest.raises(RequestError, match="messages is "):
            conversations(given)
    template = open_template(bundled(), isolated=False)
    found = read_chat(said, tokenizer, template)
    assert found.ids == tuple(tokenizer.encode(template.render(said), add_special_tokens=False))
    for given, message in (
        ([], "the conversation: messages is empty"),
        ([{"role": "usr", "content": "Hi"}], "messages[0].role is 'usr'"),
        (["Hi"], "messages[0] must be an object"),
        ([{"role": "user", "content": "\udc00"}], "half a surrogate pair"),
    ):
        with pytest.raises(RequestError, match=re.escape(message)):
            read_chat(given, tokenizer, template)
    with pytest.raises(RequestError, match="add_generation_prompt is 'yes'; it takes True or False"):
        read_chat(said, tokenizer, template, add_generation_prompt="yes")


def test_bad_words_as_they_are_and_within_a_text(tokenizer):
    alone, within = (tuple(tokenizer.encode(text, add_special_tokens=False)) for text in ("time", " time"))
    assert bad_ids(["time"], tokenizer) == bad_ids([" time"], tokenizer) == (alone, within)
    # One token within a text, two at its beginning: both are barred.
    alone, within = (tuple(tokenizer.encode(text, add_special_tokens=False)) for text in ("much", " much"))
    assert (len(alone), len(within)) == (2, 1) and bad_ids(["much"], tokenizer) == (alone, within)
    assert bad_ids([], tokenizer) == ()
