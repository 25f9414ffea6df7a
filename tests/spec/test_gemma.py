"""Gemma's configs: what is nested, what null means, what older ones say otherwise; and the ropes of two kinds of layers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shardwise.errors import ConfigError
from shardwise.spec.blocks import attentions
from shardwise.spec.config import read_model
from shardwise.spec.model import layer_blocks

SIZES = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 7, "vocab_size": 96, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 8, "sliding_window": 8,
}  # fmt: skip
TEXT = {**SIZES, "model_type": "gemma3_text"}
NESTED = {
    "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "text_config": TEXT,
    "vision_config": {"hidden_size": 16, "num_attention_heads": 2}, "torch_dtype": "bfloat16",
}  # fmt: skip


def test_the_text_part_of_a_multimodal_model_is_the_text_model():
    found, text = read_model(NESTED), read_model(TEXT)
    outside = {"architecture": "gemma3", "dtype": "bfloat16", "prefix": found.prefix, "foreign": found.foreign}
    assert found == replace(text, **outside)
    assert found.prefix == "language_model."
    assert "vision_tower.encoder.layers.0.layer_norm1.weight".startswith(found.foreign)


def test_a_text_config_may_leave_out_what_transformers_has_as_defaults():
    """As that of gemma-3-4b-it does."""
    few = {key: TEXT[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "model_type")}
    found = read_model(NESTED | {"text_config": few})
    assert (found.vocab, found.context, found.heads) == (262208, 131072, 8)
    with pytest.raises(ConfigError, match=r"config.json: text_config.hidden_size is missing"):
        read_model(NESTED | {"text_config": {"num_hidden_layers": 3}})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"text_config": None}, r"text_config is None; .* a flat one is of a gemma3_text"),
        ({"text_config": TEXT | {"model_type": "llama"}}, r"text_config.model_type is 'llama'; known here: gemma3_text"),
        ({"text_config": TEXT | {"no_rope_layers": [1]}}, r"text_config.no_rope_layers is \[1\]"),
        ({"text_config": TEXT | {"attn_logit_softcapping": 5.0}}, r"text_config.attn_logit_softcapping is 5.0"),
        ({"tie_word_embeddings": False}, r"tie_word_embeddings is False; but text_config has it the other way"),
        ({"audio_config": {}}, r"audio_config is {}"),
    ],
)
def test_what_is_nested_is_checked_like_the_rest(change, told):
    with pytest.raises(ConfigError, match=told):
        read_model(NESTED | change)


def test_nesting_is_for_multimodal_models_alone():
    with pytest.raises(ConfigError, match=r"'gemma3_text' holds .* text_config; nested configs are implemented for gemma3"):
        read_model(TEXT | {"text_config": TEXT})


def test_null_bends_nothing_and_absence_means_gemma_2():
    config = SIZES | {"model_type": "gemma2"}
    caps = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    for change, found in (({}, (50.0, 30.0)), (caps, (None, None)), ({"attn_logit_softcapping": 5}, (5.0, 30.0))):
        model = read_model(config | change)
        assert (next(attentions(model.runs[0].block)).softcap, model.head.softcap) == found


def test_gemma_1_says_gelu_and_means_the_tanh_approximation():
    old = SIZES | {"model_type": "gemma", "sliding_window": None}
    spelled = [{"hidden_act": "gelu"}, {"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"}, {}]
    assert all(read_model(old | change) == read_model(old) for change in spelled)
    with pytest.raises(ConfigError, match="hidden_activation is 'gelu'; but hidden_act says gelu_tanh"):
        read_model(old | {"hidden_act": "gelu", "hidden_activation": "gelu"})


def ropes(config):
    """(window, first steps, base recovered from the second step) of each kind of layer."""
    return {(a.window, a.rope) for _, block in layer_blocks(read_model(config)) for a in attentions(block)}


def test_old_and_new_ways_to_state_two_ropes_are_alike():
    old = TEXT | {"rope_theta": 5e5, "rope_local_base_freq": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    sections = {
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
    }
    assert read_model(old) == read_model(TEXT | {"rope_parameters": sections})
    steps = {window: rope.frequencies for window, rope in ropes(old)}
    assert steps[None][0] == 0.25 and steps[8][0] == 1.0
    assert steps[8][1] == pytest.approx(500 ** (-2 / 8), rel=1e-6)


def test_a_rope_for_all_layers_is_refused_where_there_are_two():
    for model_type in ("gemma3_text", "olmo3"):
        with pytest.raises(ConfigError, match=r"rope_parameters.rope_theta is 10000.0; .* a section for full_attention"):
            read_model(SIZES | {"model_type": model_type, "rope_parameters": {"rope_theta": 1e4}})


def test_a_window_that_nothing_outgrows_keeps_its_own_rope():
    found = ropes(TEXT | {"sliding_window": 64})
    assert {window for window, _ in found} == {None}
    assert len(found) == 2
