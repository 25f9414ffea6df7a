"""Reasoning through the server: before a form, within a budget, counted; what was generated elsewhere is read the same way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from shardwise.engine.engine import Engine
from shardwise.engine.setup import Options, Setup, resolve
from shardwise.server.routes import ROUTES
from tests.server.drive import Served, serving
from tests.server.engines import ServingFake
from tests.server.saying import chat_streamed, chat_whole, says_texts
from tests.server.scripts import TEMPLATE
from tests.server.test_chat import HI, PATH, THINKS, TOOL

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["a"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
OPENED = {"chat_template": THINKS + "{# </think> #}", "chat_template_kwargs": {"enable_thinking": True}}
BUDGETS = ("thinking_token_budget", "thinking_budget", "thinking_budget_tokens", "reasoning_budget_tokens")


class Real(Engine):
    """An engine in this process takes all requests."""

    lost: str | None = None

    async def admitted(self, request: int) -> None: ...


@pytest.fixture(scope="module")
def thinker(setup: Setup, tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """The bundled model, two of whose tokens are the marks of reasoning; its template can open one."""
    folder = tmp_path_factory.mktemp("thinker")
    for path in setup.folder.iterdir():
        if path.is_file():
            shutil.copy(path, folder / path.name)
    marks = {5: "<think>", 7: "</think>"}
    read = json.loads((folder / "tokenizer.json").read_text())
    for token in read["added_tokens"]:
        if token["id"] in marks:
            read["model"]["vocab"].pop(token["content"], None)
            token |= {"content": marks[token["id"]], "special": False}
            read["model"]["vocab"][token["content"]] = token["id"]
    (folder / "tokenizer.json").write_text(json.dumps(read))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for key in ("pad_token", "additional_special_tokens", "added_tokens_decoder"):
        config.pop(key, None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    opens = TEMPLATE.replace(
        "'<|assistant|>' -}}{%- endif", "'<|assistant|>' + ('<think>' if enable_thinking else '') -}}{%- endif"
    )
    (folder / "chat_template.jinja").write_text(opens)
    return resolve(Options(str(folder), device="cpu"))


@pytest.fixture(scope="module")
def real(thinker: Setup) -> Iterator[Served]:
    with Real(thinker, "threads") as engine, serving(engine, ROUTES) as made:
        yield made


@pytest.fixture
def served(engine: ServingFake) -> Iterator[Served]:
    with serving(engine, ROUTES, trust_request_chat_template=True) as made:
        yield made


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("form", [{"response_format": FORM}, {"structured_outputs": {"regex": "[a-c]{3}"}}, {}])
def test_a_model_reasons_within_its_budget(real: Served, form: dict[str, Any], opened: bool, stream: bool):
    asked = {
        "messages": HI, "thinking_token_budget": 5, "max_tokens": 60, "temperature": 1.2, "seed": 3, "stream": stream,
        "chat_template_kwargs": {"enable_thinking": opened}, "stream_options": {"include_usage": True} if stream else None,
        "return_token_ids": True, **form,
    }  # fmt: skip
    answer = real.post(PATH, asked)
    (choice,) = (chat_streamed if stream else chat_whole)(answer).values()
    usage = answer.events[-2]["usage"] if stream else answer.json["usage"]
    thought = choice["reasoning"]
    assert not opened or thought
    if thought:
        told = usage["completion_tokens_details"]["reasoning_tokens"]
        assert told >= 1 and "</think>" not in thought + choice["content"]
        assert choice["ids"].index(7) <= (5 if opened else 6)
    else:
        assert usage["completion_tokens_details"]["reasoning_tokens"] == 0
    if "response_format" in form:
        assert set(json.loads(choice["content"])) == {"a"}
    elif form:
        assert len(choice["content"]) == 3 and set(choice["content"]) <= set("abc")
    else:
        assert choice["content"]


def test_a_forced_call_comes_after_the_reasoning(real: Served):
    asked = {
        "messages": HI, "thinking": {"type": "enabled", "budget_tokens": 3}, "max_tokens": 200, "seed": 3,
        "tools": [{**TOOL, "function": {**TOOL["function"], "parameters": SCHEMA}}], "tool_choice": "required",
        "parallel_tool_calls": False,
    }  # fmt: skip
    choice = chat_whole(real.post(PATH, asked))[0]
    assert choice["reasoning"] and [set(json.loads(arguments)) for _, arguments in choice["calls"]] == [{"a"}]


def test_messages_keep_the_budget(real: Served):
    asked = {"messages": HI, "max_tokens": 40, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    first, *_ = real.post("/v1/messages", asked).json["content"]
    assert first["type"] == "thinking"
    submitted = {**asked, "max_tokens": 1, "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}
    assert real.post("/v1/messages", submitted).status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_and_a_form_are_told_apart(served: Served, engine: ServingFake, stream: bool):
    says_texts(engine, served.service.front.tokenizer, 'hm</think>\n\n{"a": 1}')
    read = chat_streamed if stream else chat_whole
    choice = read(served.post(PATH, {"messages": HI, "response_format": FORM, "stream": stream, **OPENED}))[0]
    assert (choice["reasoning"], choice["content"]) == ("hm", '{"a": 1}')
    params = engine.submitted[-1][1]
    assert params.structured_outputs.json and "thought" in params.structured_outputs.opening  # type: ignore[union-attr]


def test_where_reasoning_is_off_a_form_holds_from_the_first_token(served: Served, engine: ServingFake):
    says_texts(engine, served.service.front.tokenizer, '{"a": 1}')
    closed = {"chat_template": THINKS + "{{ '<think>\n\n</think>\n\n' }}"}
    goes_on = {"chat_template": THINKS + "{# <think> #}", "continue_final_message": True}
    said = [*HI, {"role": "assistant", "content": "Well:"}]
    for asked in ({"messages": HI, **closed}, {"messages": said, **goes_on}):
        choice = chat_whole(served.post(PATH, {"guided_json": SCHEMA, **asked}))[0]
        assert choice["content"] == '{"a": 1}' and choice["reasoning"] is None
        assert engine.submitted[-1][1].structured_outputs.opening is None  # type: ignore[union-attr]


def test_budgets_under_all_names(served: Served, engine: ServingFake):
    """The marks are several tokens of this model: what cannot be kept is refused. Where nothing is thought, all is kept."""
    says_texts(engine, served.service.front.tokenizer, "hm</think>x")
    for asked in ({name: 4} for name in BUDGETS):
        refused = served.post(PATH, {"messages": HI, **OPENED, **asked})
        assert refused.status == 400 and "<think> is " in refused.json["error"]["message"]
        assert refused.json["error"]["param"] == "thinking_token_budget"
        assert served.post(PATH, {"messages": HI, **asked}).status == 200
    for free in (
        {"thinking_budget": -1},
        {"thinking": {"type": "adaptive"}},
        {"thinking": {"type": "disabled", "budget_tokens": 4}},
    ):
        assert served.post(PATH, {"messages": HI, **OPENED, **free}).status == 200
    two = served.post(PATH, {"messages": HI, "thinking_budget": 4, "thinking_token_budget": 5})
    assert two.status == 400 and "thinking_token_budget and thinking_budget are one thing" in two.json["error"]["message"]


def test_special_tokens_before_the_template_s_text(served: Served):
    plain, special = (
        served.post(f"{PATH}/render", {"messages": HI, "chat_template": "hi", "add_special_tokens": given}).json["token_ids"]
        for given in (False, True)
    )
    assert special == [0, *plain]


def test_what_was_generated_elsewhere_is_read(served: Served):
    tokenizer = served.service.front.tokenizer
    text = 'hm</think>I look.<tool_call>{"name": "f", "arguments": {"a": "b"}}</tool_call>'
    ids = tokenizer.encode(text, add_special_tokens=False)
    template = {**OPENED, "chat_template": OPENED["chat_template"] + "{# <tool_call> #}"}
    asked = {
        "generate_response": {
            "request_id": "chatcmpl-7",
            "choices": [
                {"index": 1, "text": "hm</think>No.", "finish_reason": "length"},
                {"index": 0, "token_ids": [*ids, tokenizer.eos_ids[0]], "finish_reason": "stop"},
            ],
        },
        "prompt_tokens": 8,
        "chat_request": {"messages": HI, "tools": [TOOL], **template},
    }
    answer = served.post(f"{PATH}/derender", asked)
    assert answer.status == 200 and answer.json["id"] == "chatcmpl-7", answer.body
    first, second = chat_whole(answer).values()
    assert (first["reasoning"], first["content"], first["calls"]) == ("hm", "I look.", [("f", '{"a": "b"}')])
    assert (first["finish"], second["finish"], second["content"]) == ("tool_calls", "length", "No.")
    usage = answer.json["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"] > len(ids)) == (8, True)
    plain = served.post(f"{PATH}/derender", {"generate_response": {"choices": [{"token_ids": ids}]}})
    assert chat_whole(plain)[0]["content"] == text
    for wrong in ({"token_ids": [1], "text": "a"}, {}, {"index": 3, "text": "a"}, {"token_ids": [10**9]}):
        assert served.post(f"{PATH}/derender", {"generate_response": {"choices": [wrong]}}).status == 400
