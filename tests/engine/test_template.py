"""Chat templates: the prompts of transformers, for every template at hand."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from shardwise.engine.template import CHATML, KNOWN_VARIABLES, ChatTemplate, open_template
from shardwise.errors import CheckpointError, RequestError

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
HELLO = [{"role": "user", "content": "hello"}]


def call(name: str, **arguments: object) -> dict[str, Any]:
    return {"id": "abcdefgh1", "type": "function", "function": {"name": name, "arguments": arguments}}


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a place, in “°C”",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string", "description": "a town"}, "days": {"type": "integer"}},
                "required": ["place"],
            },
        },
    }
]
ASKED = [
    {"role": "user", "content": "Weather in Zürich?"},
    {"role": "assistant", "content": "", "tool_calls": [call("weather", place="Zürich", days=2)]},
    {"role": "tool", "content": '{"°C": 21}', "tool_call_id": "abcdefgh1", "name": "weather"},
]
CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]] | None]] = {
    "one": (HELLO, None),
    "system": ([{"role": "system", "content": "Be brief."}, *HELLO], None),
    "turns": ([*HELLO, {"role": "assistant", "content": "Hi!"}, {"role": "user", "content": " and\nnow? "}], None),
    "unicode": ([{"role": "user", "content": "नमस्ते 👩‍👩‍👧 <b>&amp;</b> \u202e \u00a0"}], None),
    "empty": ([{"role": "user", "content": ""}], None),
    "tools": (HELLO, TOOLS),
    "system and tools": ([{"role": "system", "content": "Be brief."}, *HELLO], TOOLS),
    "no tools": (HELLO, []),
    "calls": (ASKED, TOOLS),
    "calls without tools": (ASKED, None),
    "calls answered": ([*ASKED, {"role": "assistant", "content": "21 °C."}, {"role": "user", "content": "Thanks"}], TOOLS),
    "reasoning": (
        [
            *HELLO,
            {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHi", "reasoning": "hm"},
            {"role": "user", "content": "?"},
        ],
        None,
    ),
}
FINALS = ("It is", "It is ", "  two\n lines \n\n", "👍🏽 é")


def chat_templates(data: Path) -> dict[str, tuple[str, dict[str, str]]]:
    """Source and special tokens of each template in the data folder."""
    found = {
        path.stem: (path.read_text(encoding="utf-8"), SPECIAL) for path in (data / "tokenizers/chat-templates").glob("*.jinja")
    }
    for name in ("qwen3", "phi3"):
        config = json.loads((data / "tokenizers" / name / "tokenizer_config.json").read_text(encoding="utf-8"))
        special = {key: config[key] for key in SPECIAL if isinstance(config.get(key), str)}
        found[name] = (config["chat_template"], special)
    return {"ChatML": (CHATML, SPECIAL)} | found


def theirs(source: str, special: dict[str, str]) -> Callable[..., str | None]:
    """What transformers renders, None where it raises."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (a test dependency)")
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=source, **special)

    def render(messages: list[dict[str, Any]], **options: Any) -> str | None:
        try:
            text: str = tokenizer.apply_chat_template(messages, tokenize=False, **options)
        except Exception:  # a template may raise anything
            return None
        return text

    return render


def in_json_text(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same calls, their arguments as the JSON text that the OpenAI protocol has."""
    copied = json.loads(json.dumps(messages))
    for message in copied:
        for made in message.get("tool_calls") or ():
            made["function"]["arguments"] = json.dumps(made["function"]["arguments"], ensure_ascii=False)
    return copied


def ours(template: ChatTemplate, messages: list[dict[str, Any]], **options: Any) -> str | None:
    try:
        return template.render(messages, **options)
    except RequestError:
        return None


@pytest.fixture(scope="session")
def sources(data: Path) -> dict[str, tuple[str, dict[str, str]]]:
    return chat_templates(data)


def test_prompts_are_those_of_transformers(
    sources: dict[str, tuple[str, dict[str, str]]], figures: Callable[..., None]
) -> None:
    equal = refused = 0
    assert len(sources) >= 15
    for name, (source, special) in sources.items():
        reference, template = theirs(source, special), ChatTemplate({"default": source}, special)
        for label, (messages, tools) in CONVERSATIONS.items():
            for prompt in (True, False):
                options = {"tools": tools, "add_generation_prompt": prompt}
                wanted = reference(messages, **options)
                if wanted is None:  # some templates put arguments together as text
                    wanted = reference(in_json_text(messages), **options)
                assert ours(template, messages, **options) == wanted, (name, label)
                assert ours(template, in_json_text(messages), **options) == wanted, (name, label)
                equal, refused = equal + (wanted is not None), refused + (wanted is None)
    figures("chat prompts equal to transformers'", rendered=equal, refused_by_both=refused, templates=len(sources))
    assert equal > 8 * refused


def test_final_messages_are_continued_as_by_transformers(sources: dict[str, tuple[str, dict[str, str]]]) -> None:
    equal = 0
    for name, (source, special) in sources.items():
        reference, template = theirs(source, special), ChatTemplate({"default": source}, special, isolated=False)
        for final in FINALS:
            messages = [*HELLO, {"role": "assistant", "content": final}]
            wanted = reference(messages, continue_final_message=True)
            assert ours(template, messages, continue_final_message=True) == wanted, (name, final)
            equal += wanted is not None
    assert equal >= 48


def test_text_parts_reach_every_template(sources: dict[str, tuple[str, dict[str, str]]]) -> None:
    """A list of parts is rendered as it is by templates that know lists, else as text, never as a Python object."""
    parts = [{"type": "text", "text": "first part"}, {"type": "text", "text": "second part"}]
    for name, (source, special) in sources.items():
        text = ChatTemplate({"default": source}, special, isolated=False).render([{"role": "user", "content": parts}])
        assert "first part" in text and "second part" in text and "'type'" not in text, name


def test_variables_reach_the_template(sources: dict[str, tuple[str, dict[str, str]]]) -> None:
    for name, variables in (
        ("qwen3", {"enable_thinking": False}),
        ("HuggingFaceTB-SmolLM3-3B", {"enable_thinking": False}),
        ("openai-gpt-oss-120b", {"reasoning_effort": "high"}),
        ("deepseek-ai-DeepSeek-V3.1", {"thinking": True}),
        ("meta-llama-Llama-3.1-8B-Instruct", {"date_string": "1 May 2025"}),
    ):
        source, special = sources[name]
        template = ChatTemplate({"default": source}, special, isolated=False)
        text = template.render(HELLO, variables=variables)
        assert text == theirs(source, special)(HELLO, add_generation_prompt=True, **variables)
        assert text != template.render(HELLO)


def test_a_warm_rendering_takes_a_millisecond(
    sources: dict[str, tuple[str, dict[str, str]]], figures: Callable[..., None]
) -> None:
    template = ChatTemplate({"default": sources["qwen3"][0]}, {})
    template.start()
    template.render(HELLO)
    times = []
    for _ in range(50):
        start = time.perf_counter()
        template.render(HELLO)
        times.append(time.perf_counter() - start)
    figures("a chat prompt in its own process", milliseconds=min(times) * 1e3)
    assert min(times) < 0.02


def made(source: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, SPECIAL)


def test_what_transformers_gives_to_templates() -> None:
    template = made(
        "{% for message in messages %}\n    {%- generation %}{{ message.content | tojson(indent=1) }}{% endgeneration %}\n"
        "    {% if loop.index > 1 %}{% break %}{% endif %}\n{% endfor %}\n"
        "{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ dict(a=1).a }}"
        "{{ bos_token }}{{ sep_token is defined }}{{ strftime_now('%Y') | length }}"
    )
    assert template.render([{"role": "user", "content": "é<"}] * 3) == '"é<""é<"21<s>False4'


def test_the_template_s_own_message_is_given() -> None:
    with pytest.raises(RequestError, match="refuses this conversation: Only user roles, please"):
        made("{{ raise_exception('Only user roles, please') }}").render(HELLO)
    with pytest.raises(RequestError, match="'nothing' is undefined"):
        made("{{ nothing.at.all }}").render(HELLO)
    with pytest.raises(RequestError, match="TypeError"):
        made("{{ 'a' + 1 }}").render(HELLO)
    with pytest.raises(CheckpointError, match="line 2"):
        made("a\n{% if %}").render(HELLO)
    with pytest.raises(CheckpointError, match="no_such_filter"):
        made("{{ 1 | no_such_filter }}").render(HELLO)


@pytest.mark.parametrize(
    ("messages", "place"),
    [
        ([], "messages is empty"),
        ("hello", "messages must be a list"),
        (["hello"], r"messages\[0\] must be an object"),
        ([*HELLO, {"content": "x"}], r"messages\[1\]\.role is missing"),
        ([{"role": "root", "content": "x"}], r"messages\[0\]\.role is 'root'.*user"),
        ([{"role": ["user"], "content": "x"}], r"messages\[0\]\.role"),
        ([{"role": "user"}], r"messages\[0\]\.content is missing"),
        ([{"role": "user", "content": None}], r"messages\[0\]\.content is missing"),
        ([{"role": "user", "content": 7}], r"messages\[0\]\.content is a number"),
        ([{"role": "user", "content": {"type": "text"}}], r"messages\[0\]\.content is an object"),
        ([{"role": "user", "content": None, "reasoning": "x"}], r"messages\[0\]\.content is missing"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], r"messages\[0\]\.content\[0\] is not text"),
        ([{"role": "user", "content": ["x"]}], r"messages\[0\]\.content\[0\]"),
        ([{"role": "user", "content": "\ud800"}], r"messages\[0\]\.content has half a surrogate"),
        ([{"role": "user", "content": "x", "name": object()}], r"messages\[0\]\.name is a object"),
        ([{"role": "user", "content": "x", 7: 8}], r"a key of messages\[0\]"),
        ([{"role": "assistant", "tool_calls": [{}]}], r"messages\[0\]\.tool_calls\[0\] is not a function call"),
        ([{"role": "assistant", "tool_calls": {"a": 1}}], r"messages\[0\]\.tool_calls must be a list"),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]}], "arguments must be an object"),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 0}}]}], "arguments must be an object"),
    ],
)
def test_wrong_messages_are_refused_with_their_place(messages: Any, place: str) -> None:
    with pytest.raises(RequestError, match=place):
        ChatTemplate({}, {}).render(messages)


def test_depth_and_tools_are_checked() -> None:
    deep: Any = "x"
    for _ in range(100):
        deep = [deep]
    with pytest.raises(RequestError, match="deep"):
        ChatTemplate({}, {}).render([{"role": "user", "content": "x", "metadata": deep}])
    with pytest.raises(RequestError, match=r"tools\[1\] must be an object"):
        ChatTemplate({}, {}).render(HELLO, tools=[{}, "weather"])  # type: ignore[list-item]
    with pytest.raises(RequestError, match="exclude each other"):
        ChatTemplate({}, {}).render(HELLO, add_generation_prompt=True, continue_final_message=True)
    with pytest.raises(RequestError, match="last message"):
        made("{{ messages[0].content[:3] }}").render(HELLO, continue_final_message=True)


@pytest.mark.parametrize(
    "name",
    [
        *("tokenize", "chat_template", "messages", "tools", "documents", "add_generation_prompt", "continue_final_message"),
        *(
            "bos_token",
            "eos_token",
            "raise_exception",
            "namespace",
            "range",
            "strftime_now",
            "__class__",
            "_x",
            "return_dict",
            "",
        ),
    ],
)
def test_forbidden_variables_are_refused(name: str) -> None:
    source = "{{ messages }}{{ tools }}{{ bos_token }}{{ range(2) }}{{ documents }} __class__ _x x-y"
    with pytest.raises(RequestError, match="enable_thinking"):
        made(source).render(HELLO, variables={name: True})


def test_variables_are_scalars() -> None:
    assert made("{{ enable_thinking }}{{ style }}").render(HELLO, variables={"enable_thinking": True, "style": "x"}) == "Truex"
    for value in ([1], {"a": 1}, object(), "\ud800"):
        with pytest.raises(RequestError, match="style"):
            made("{{ style }}").render(HELLO, variables={"style": value})
    for name in KNOWN_VARIABLES:  # clients send them to every model
        assert made("x").render(HELLO, variables={name: True}) == "x"


def test_which_template_is_taken(tmp_path: Path) -> None:
    assert open_template(tmp_path).is_default
    assert open_template(tmp_path).render(HELLO) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "text {{ eos_token }}", "eos_token": {"content": "<e>"}}))
    assert not open_template(tmp_path).is_default
    assert open_template(tmp_path).render(HELLO) == "text <e>"
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]
    config.write_text(json.dumps({"chat_template": named}))
    template = open_template(tmp_path)
    assert (template.render(HELLO), template.render(HELLO, tools=TOOLS)) == ("plain", "with tools")
    (tmp_path / "chat_template.jinja").write_text("file")
    template = open_template(tmp_path, isolated=False)
    assert (template.render(HELLO), template.render(HELLO, tools=TOOLS)) == ("file", "with tools")
    config.write_text(json.dumps({"chat_template": named[1:]}))
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match=r"tool_use.*'default'"):
        open_template(tmp_path)
