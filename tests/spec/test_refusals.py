"""A config that asks for what is not implemented is refused, and the message has the key, the value and a way out."""

from __future__ import annotations

import pytest

from shardwise.errors import ConfigError
from shardwise.spec.config import read_model
from shardwise.spec.models import MODELS
from tests.spec.test_models import GPT2, SLIDING, SMALL, TINY

REFUSED = [
    ("llama", {"sliding_window": 4096}),
    ("llama", {"use_sliding_window": True}),
    ("llama", {"layer_types": SLIDING}),
    ("mistral", {"layer_types": SLIDING}),
    ("llama", {"attn_logit_softcapping": 50.0}),
    ("llama", {"final_logit_softcapping": 30.0}),
    ("llama", {"embedding_multiplier": 12.0}),
    ("llama", {"attention_multiplier": 0.015}),
    ("llama", {"residual_multiplier": 0.22}),
    ("llama", {"logits_scaling": 8.0}),
    ("llama", {"logit_scale": 0.0625}),
    ("llama", {"qk_norm": True}),
    ("llama", {"use_qk_norm": True}),
    ("llama", {"qk_layernorm": True}),
    ("llama", {"clip_qkv": 8}),
    ("llama", {"num_experts": 8}),
    ("llama", {"num_local_experts": 8}),
    ("llama", {"n_routed_experts": 256}),
    ("llama", {"num_experts_per_tok": 2}),
    ("llama", {"moe_intermediate_size": 768}),
    ("llama", {"q_lora_rank": 1536}),
    ("llama", {"kv_lora_rank": 512}),
    ("llama", {"v_head_dim": 128}),
    ("llama", {"alibi": True}),
    ("llama", {"position_embedding_type": "nope"}),
    ("llama", {"no_rope_layers": [1, 1, 0]}),
    ("llama", {"parallel_attn": True}),
    ("llama", {"use_parallel_residual": True}),
    ("llama", {"attention_sink": True}),
    ("llama", {"use_attention_sinks": 4}),
    ("llama", {"attention_chunk_size": 8192}),
    ("llama", {"partial_rotary_factor": 0.5}),
    ("llama", {"rope_interleaved": True}),
    ("llama", {"pruned_heads": {"0": [1]}}),
    ("llama", {"vision_config": {}}),
    ("llama", {"lm_head_bias": True}),
    ("llama", {"hidden_activation": "gelu_pytorch_tanh"}),
    ("llama", {"num_nextn_predict_layers": 1}),
    ("llama", {"query_pre_attn_scalar": 224}),
    ("mistral", {"attention_bias": True}),
    ("mistral", {"mlp_bias": True}),
    ("qwen2", {"use_mrope": True}),
    ("qwen2", {"mlp_bias": True}),
    ("qwen3", {"mlp_bias": True}),
    ("granite", {"sliding_window": 128}),
    ("phi3", {"attention_bias": True}),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    ("gpt2", {"reorder_and_upcast_attn": True}),
    ("gpt2", {"add_cross_attention": True}),
    ("gpt2", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    ("gpt2", {"hidden_act": "silu"}),
    ("gpt2", {"position_embedding_type": "relative_key"}),
    ("gpt2", {"sliding_window": 4}),
    ("gemma", {"attn_logit_softcapping": 50.0}),
    ("gemma", {"hidden_activation": "silu"}),
    ("gemma2", {"hidden_act": "silu"}),
    ("gemma2", {"use_bidirectional_attention": True}),
    ("gemma2", {"layer_types": ["chunked_attention"] * 3}),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}),
    ("olmo2", {"clip_qkv": 8.0}),
    ("olmo3", {"rope_theta": 10000.0}),
    ("gpt_neox", {"rope_theta": 500000.0}),
    ("gpt_neox", {"partial_rotary_factor": 0.5}),
    ("falcon", {"alibi": True}),
    ("falcon", {"num_ln_in_parallel_attn": 2}),
    ("falcon, grouped", {"parallel_attn": False}),
    ("falcon, grouped", {"num_kv_heads": 4}),
    ("llama", {"architectures": ["LlamaForSequenceClassification"]}),
    ("gpt2", {"architectures": ["GPT2DoubleHeadsModel"]}),
    ("llama", {"hidden_act": "quick_gelu"}),
    ("gpt2", {"activation_function": "tanh"}),
    ("llama", {"num_key_value_heads": 4}),
    ("llama", {"num_attention_heads": 7}),
    ("gpt2", {"n_head": 7}),
    ("llama", {"dtype": "auto"}),
    ("llama", {"torch_dtype": "float8_e4m3fn"}),
    ("qwen2", {"layer_types": ["sliding_attention"] * 3}),
    ("qwen3", {"layer_types": ["full_attention"] * 2}),
    ("qwen3", {"layer_types": ["full_attention", "linear_attention", "full_attention"]}),
]


class TestRefusals:
    @pytest.mark.parametrize(("name", "change"), REFUSED, ids=[f"{name}-{next(iter(change))}" for name, change in REFUSED])
    def test_by_name(self, name, change):
        config = {"num_key_value_heads": None} if "num_attention_heads" in change else {}
        with pytest.raises(ConfigError) as caught:
            read_model(TINY[name] | config | change)
        ((key, value),) = change.items()
        told = str(caught.value)
        if key == "num_attention_heads":
            assert "7 heads do not divide a hidden size of 48; give head_dim" in told
        else:
            assert key in told
            assert "position_embedding_type" in told or str(value)[:12] in told or repr(value[1])[:12] in told
            assert any(way in told for way in ("work", "known", "implemented", "must", "without", "it has"))

    def test_nested_configs_of_others_by_the_model_that_holds_them(self):
        with pytest.raises(
            ConfigError, match=r"model_type 'llama' holds its text model in text_config; .* a text model's would work"
        ):
            read_model(TINY["llama"] | {"text_config": {"model_type": "mistral"}})

    @pytest.mark.parametrize("near", ["lama", "mistrall", "qwen", "phi", "gptneox"])
    def test_unknown_architectures_name_the_nearest(self, near):
        known = ", ".join(sorted(MODELS))
        with pytest.raises(ConfigError, match=rf"model_type '{near}' is not implemented; nearest: .*; known are {known}"):
            read_model(SMALL | {"model_type": near})

    @pytest.mark.parametrize("other", [None, 3, ["llama"], "zzz"])
    def test_no_architecture_lists_them(self, other):
        with pytest.raises(ConfigError, match=f"known are {', '.join(sorted(MODELS))}"):
            read_model(SMALL | {"model_type": other})

    def test_sizes_have_no_default(self):
        for base in (TINY["llama"], GPT2):
            for key in base.keys() - {"model_type", "num_key_value_heads"}:
                with pytest.raises(ConfigError, match=f"config.json: {key} is missing"):
                    read_model({k: v for k, v in base.items() if k != key})

    def test_dtypes_that_disagree(self):
        with pytest.raises(ConfigError, match="dtype is 'float16'; but torch_dtype is 'bfloat16'"):
            read_model(TINY["llama"] | {"dtype": "float16", "torch_dtype": "bfloat16"})

    def test_code_is_not_run_and_not_even_looked_at(self):
        auto_map = {"AutoModelForCausalLM": "evil.py--Evil"}
        assert read_model(TINY["llama"] | {"auto_map": auto_map}) == read_model(TINY["llama"])
