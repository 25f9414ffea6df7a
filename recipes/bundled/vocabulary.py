"""The byte-level BPE tokenizer and the chat template of shardling."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS, EOS, SYSTEM, USER, ASSISTANT, TOOL, END, PAD = SPECIAL = (
    "<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>", "<|pad|>",
)  # fmt: skip
SIZE = 4096
CONTEXT = 1024
WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TOOLS_INTRO = "You can call these tools:"
TOOLS_HOW = 'To call one, write <tool_call>{"name": ..., "arguments": {...}}</tool_call>.'

TEMPLATE = (
    """{%- set first = messages[0] if messages else none -%}
{{- bos_token -}}
{%- set lead = first.content | trim if first and first.role == 'system' else '' -%}
{%- if tools -%}
    {{- '<|system|>' + lead + ('\\n\\n' if lead else '') + '"""
    + TOOLS_INTRO
    + """' -}}
    {%- for tool in tools -%}{{- '\\n' -}}{{- tool | tojson -}}{%- endfor -%}
    {{- '\\n"""
    + TOOLS_HOW
    + """<|end|>' -}}
{%- elif lead -%}
    {{- '<|system|>' + lead + '<|end|>' -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}
        {%- if not loop.first -%}{{- '<|system|>' + message.content | trim + '<|end|>' -}}{%- endif -%}
    {%- elif message.role == 'assistant' -%}
        {{- '<|assistant|>' + (message.content or '') | trim -}}
        {%- for call in message.tool_calls or [] -%}
            {%- set call = call.function if call.function else call -%}
            {{- '<tool_call>{"name": ' -}}{{- call.name | tojson -}}{{- ', "arguments": ' -}}
            {{- call.arguments if call.arguments is string else call.arguments | tojson -}}
            {{- '}</tool_call>' -}}
        {%- endfor -%}
        {{- '<|end|>' -}}
    {%- elif message.role == 'user' or message.role == 'tool' -%}
        {{- '<|' + message.role + '|>' + message.content | trim + '<|end|>' -}}
    {%- else -%}
        {{- raise_exception('unknown role ' + message.role + '; known: system, user, assistant, tool') -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"""
)


def train(texts: Iterable[str]) -> Tokenizer:
    """A tokenizer of SIZE tokens that can write every byte; digits stand alone; <|bos|> is put before plain text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = list(SPECIAL)
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B:1", special_tokens=[(BOS, bos)]),
    ])  # fmt: skip
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and the two small files which transformers reads beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": BOS, "eos_token": END, "pad_token": PAD}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": True,
        **names,
        "additional_special_tokens": [EOS, SYSTEM, USER, ASSISTANT, TOOL],
        "added_tokens_decoder": {str(i): added(token) for i, token in enumerate(SPECIAL)},
        "chat_template": TEMPLATE,
    }
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", names)


def added(token: str) -> dict[str, str | bool]:
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": token, **flags, "special": True}


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
