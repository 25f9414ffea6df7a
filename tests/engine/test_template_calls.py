"""Messages of few words: one that only calls reaches every template in a way that shows its calls; one may say nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardwise.engine.template import ChatTemplate
from shardwise.errors import RequestError
from tests.engine.test_template import ASKED, HELLO, TOOLS, chat_templates, in_json_text, made, ours, theirs


def test_calls_beside_no_content_are_shown_by_every_template(data: Path) -> None:
    """As by transformers where it renders them; those that it fails on get null or no text, whichever they can show."""
    asked, called, answered = ASKED
    bare = {key: value for key, value in called.items() if key != "content"}
    equal = mended = 0
    for name, (source, special) in chat_templates(data).items():
        reference, template = theirs(source, special), ChatTemplate({"default": source}, special)
        for silent, tools in ((bare, TOOLS), ({**bare, "content": None}, TOOLS), ({**bare, "content": None}, None)):
            options = {"tools": tools, "add_generation_prompt": True}
            spelled = [[asked, message, answered] for message in (silent, {**silent, "content": ""})]
            wanted = [reference(each, **options) or reference(in_json_text(each), **options) for each in spelled]
            found = {ours(template, spell([asked, silent, answered]), **options) for spell in (list, in_json_text)}
            assert len(found) == 1, name
            if name == "deepseek-ai-DeepSeek-R1-Distill-Llama-8B":
                assert "function<｜tool▁sep｜>weather\n```json\n{" in (found.pop() or "")
                continue
            assert found == {wanted[0] or wanted[1]}, name
            equal, mended = equal + (wanted[0] is not None), mended + (wanted[0] is None and wanted[1] is not None)
    assert equal >= 24 and mended >= 9  # Qwen 3 among these


def test_an_answer_that_says_nothing_can_be_sent_back() -> None:
    """As it came: one that was cut in its reasoning has no content."""
    empty = {"role": "assistant", "content": None, "tool_calls": []}
    assert made("{% for m in messages %}[{{ m.content }}]{% endfor %}").render([*HELLO, empty]).endswith("[]")
    for name in ("reasoning", "reasoning_content"):
        cut = {"role": "assistant", "content": None, name: "Let me see"}
        source = "{% for m in messages %}[{{ m.reasoning_content }}|{{ m.content }}]{% endfor %}"
        assert made(source).render([*HELLO, cut, *HELLO]).count("[Let me see|]") == 1


@pytest.mark.parametrize("source", ["{{ %s | tojson }}", "{{ %s }}"])
def test_a_call_without_arguments(source: str) -> None:
    """Streams of such calls add up to no text at all, and clients send that back."""
    template = made(source % "messages[-1].tool_calls[0].function.arguments")
    for function in ({"name": "f", "arguments": ""}, {"name": "f", "arguments": None}, {"name": "f"}):
        call = {"id": "a", "type": "function", "function": function}
        assert template.render([*HELLO, {"role": "assistant", "tool_calls": [call]}]) == "{}"


CUT = ('{"city": "Zür', "[1]", '"Bern"', "[" * 9999, '{"days": ' + "1" * 5000 + "}", '{"a": "\\ud83d"}')
"""Arguments as an answer has them that was cut within a call, and other text that is not the JSON of an object."""


def test_arguments_that_were_cut_are_the_text_that_they_are(data: Path) -> None:
    """As transformers has it; a template that puts arguments together by name fails on them, with the place of the call."""
    asked, called, answered = ASKED
    equal = failed = 0
    for name, (source, special) in chat_templates(data).items():
        reference, template = theirs(source, special), ChatTemplate({"default": source}, special)
        for arguments in CUT[: 1 if name != "qwen3" else None]:
            (call,) = called["tool_calls"]
            cut = {**called, "content": "", "tool_calls": [{**call, "function": {**call["function"], "arguments": arguments}}]}
            messages = [asked, cut, answered]
            wanted = reference(messages, tools=TOOLS, add_generation_prompt=True)
            if wanted is not None:
                assert template.render(messages, tools=TOOLS) == wanted, name
                equal += 1
            else:
                with pytest.raises(RequestError, match=r"messages\[1\]\.tool_calls\[0\]: its arguments are not the JSON.*chat"):
                    template.render(messages, tools=TOOLS)
                failed += 1
    assert equal >= 12 and failed
