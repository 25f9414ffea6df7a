"""Tiny random checkpoints of every family, written by transformers: seeded, with logits that are far from flat.

A fresh model of transformers has zero biases and norms of one, which would hide a bias or a norm that is not applied: here
every parameter is random.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

BASE: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def _llama(**changes: Any) -> dict[str, Any]:
    return {"model_type": "llama", **BASE, **changes}


def _turned(**rope: Any) -> dict[str, Any]:
    return _llama(rope_parameters={"rope_theta": 10000.0, **rope})


def _phi3(**changes: Any) -> dict[str, Any]:
    return {"model_type": "phi3", **BASE, **changes}


def _moe(model_type: str, **changes: Any) -> dict[str, Any]:
    return {"model_type": model_type, **BASE, "num_experts_per_tok": 2, **changes}


def _glm4(**changes: Any) -> dict[str, Any]:
    mine = {"head_dim": 8, "n_routed_experts": 6, "moe_intermediate_size": 24, "attention_bias": True}
    return _moe("glm4_moe", **{**mine, **changes})


def _llama4(**changes: Any) -> dict[str, Any]:
    mine = {"num_local_experts": 5, "intermediate_size": 48, "intermediate_size_mlp": 80, "num_hidden_layers": 4, "head_dim": 8}
    far = {"attention_chunk_size": 11, "floor_scale": 7, "attn_scale": 0.4, "num_experts_per_tok": 1}
    return _moe("llama4_text", **{**mine, **far, **changes})


LONG: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.4],
    "long_factor": [1.3, 2.0, 3.1, 4.5],
    "original_max_position_embeddings": 32,
}

TWO_ROPES = {
    "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
KINDS = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]


def _gemma(model_type: str, **changes: Any) -> dict[str, Any]:
    return {"model_type": model_type, **BASE, "head_dim": 12, "tie_word_embeddings": True, **changes}


def _plain(model_type: str, **changes: Any) -> dict[str, Any]:
    """No grouped heads but by keys of the family's own."""
    shape = {key: value for key, value in BASE.items() if key not in ("num_key_value_heads", "tie_word_embeddings")}
    return {"model_type": model_type, **shape, **changes}


DEEP: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "mscale": 0.7,
    "mscale_all_dim": 0.9,
}
"""YaRN as DeepSeek has it, which scales the scores too. Published configs have both scales alike, and cos and sin are left."""


def _deepseek(kind: str, **changes: Any) -> dict[str, Any]:
    """Heads of 12 + 8 elements of key and 10 of value; two of three layers are mixtures."""
    return {
        "model_type": kind,
        **BASE,
        "num_hidden_layers": 3,
        "num_key_value_heads": 8,
        "q_lora_rank": 28,
        "kv_lora_rank": 24,
        "qk_nope_head_dim": 12,
        "qk_rope_head_dim": 8,
        "v_head_dim": 10,
        "first_k_dense_replace": 1,
        "n_routed_experts": 9,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 24,
        **changes,
    }


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _llama(),
    "llama-tied": _llama(tie_word_embeddings=True),
    "llama-biased": _llama(attention_bias=True, mlp_bias=True),
    "llama-9-3": _llama(hidden_size=72, num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True),
    "llama-mqa": _llama(hidden_size=48, num_attention_heads=6, num_key_value_heads=1, head_dim=16),
    "llama-linear": _turned(rope_type="linear", factor=2.5),
    # Beyond 32 tokens the base grows: the prompts and what is generated after them are on both sides of it.
    "llama-dynamic": {**_turned(rope_type="dynamic", factor=2.0), "max_position_embeddings": 32},
    "llama-yarn": _turned(rope_type="yarn", factor=4.0, original_max_position_embeddings=32),
    "llama-llama3": _turned(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
    ),
    "mistral-window": {"model_type": "mistral", **BASE, "head_dim": 12, "sliding_window": 8},
    "mistral-full": {"model_type": "mistral", **BASE, "sliding_window": None},
    "qwen2": {"model_type": "qwen2", **BASE, "tie_word_embeddings": True},
    "qwen2-window": {
        "model_type": "qwen2",
        **BASE,
        "num_hidden_layers": 3,
        "use_sliding_window": True,
        "sliding_window": 20,
        "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3", **BASE, "head_dim": 16, "num_key_value_heads": 2},
    "qwen3-biased": {"model_type": "qwen3", **BASE, "head_dim": 8, "attention_bias": True},
    "granite": {
        "model_type": "granite",
        **BASE,
        "embedding_multiplier": 6.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.4,
        "logits_scaling": 3.0,
    },
    "granite-moe": _moe(
        "granitemoe",
        num_local_experts=5,
        intermediate_size=48,
        embedding_multiplier=6.0,
        attention_multiplier=0.2,
        residual_multiplier=0.4,
        logits_scaling=3.0,
    ),
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 131,
        "n_embd": 60,
        "n_head": 5,
        "n_layer": 2,
        "n_positions": 128,
        "bos_token_id": None,
        "eos_token_id": None,
    },
    "gpt2-untied": {
        "model_type": "gpt2",
        "vocab_size": 96,
        "n_embd": 48,
        "n_head": 6,
        "n_layer": 2,
        "n_positions": 128,
        "n_inner": 70,
        "activation_function": "relu",
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
    },
    "deepseek-v2": _deepseek(
        "deepseek_v2", topk_method="group_limited_greedy", n_group=3, topk_group=2, routed_scaling_factor=4.0
    ),
    "deepseek-v2-lite": _deepseek("deepseek_v2", q_lora_rank=None, rope_parameters=DEEP, n_shared_experts=1),
    "deepseek-v3": _deepseek("deepseek_v3", rope_parameters=DEEP, attention_bias=True, n_group=3, topk_group=2),
    "deepseek-dense": _deepseek("deepseek_v3", first_k_dense_replace=3, rope_interleave=False, n_group=1, topk_group=1),
    "phi3": _phi3(),
    "phi3-window": _phi3(sliding_window=8),
    "phi3-partial": _phi3(rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}),
    "phi3-longrope": _phi3(rope_parameters=LONG, original_max_position_embeddings=32),
    "phi3-longrope-partial": _phi3(
        hidden_size=128, rope_parameters={**LONG, "partial_rotary_factor": 0.5}, original_max_position_embeddings=32
    ),
    "gemma": _gemma("gemma", num_key_value_heads=1, head_dim=16),
    # Scores and logits are bent where they bend most: the caps are far below what this model's scores reach.
    "gemma2": _gemma("gemma2", num_hidden_layers=3, sliding_window=8, attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    "gemma2-full": _gemma("gemma2", sliding_window=128, num_key_value_heads=2, query_pre_attn_scalar=40, attention_bias=True),
    "gemma3": _gemma("gemma3_text", num_hidden_layers=4, sliding_window=8, rope_parameters=TWO_ROPES, layer_types=KINDS),
    "gemma3-mqa": _gemma("gemma3_text", num_key_value_heads=1, final_logit_softcapping=3.0),
    # A multimodal checkpoint, of which the text part is run.
    "gemma3-vision": {
        "model_type": "gemma3",
        "text_config": _gemma("gemma3_text", sliding_window=8, layer_types=KINDS[:2]),
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        "mm_tokens_per_image": 1,
    },
    "olmo2": {"model_type": "olmo2", **BASE, "num_key_value_heads": 2},
    "olmo2-biased": {"model_type": "olmo2", **BASE, "num_key_value_heads": 1, "attention_bias": True, "rms_norm_eps": 1e-2},
    "olmo3": {
        "model_type": "olmo3",
        **BASE,
        "num_hidden_layers": 4,
        "sliding_window": 8,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    },
    "gpt-neox": _plain("gpt_neox", rotary_pct=0.5, rotary_emb_base=500),
    "gpt-neox-in-turn": _plain("gpt_neox", rotary_pct=1.0, use_parallel_residual=False, attention_bias=False),
    "falcon-7b": _plain("falcon", bias=True),
    "falcon-40b": _plain("falcon", new_decoder_architecture=True, num_kv_heads=2),
    "falcon-11b": _plain("falcon", new_decoder_architecture=True, num_kv_heads=4, num_ln_in_parallel_attn=1),
    "falcon-in-turn": _plain("falcon", multi_query=False, parallel_attn=False, tie_word_embeddings=False),
    "mixtral": _moe("mixtral", num_local_experts=5, intermediate_size=48),
    "qwen3-moe": _moe("qwen3_moe", num_experts=7, moe_intermediate_size=24, mlp_only_layers=[1], num_hidden_layers=3),
    "qwen2-moe": _moe(
        "qwen2_moe", num_experts=5, moe_intermediate_size=24, shared_expert_intermediate_size=40, norm_topk_prob=True
    ),
    # A limit and a window that are often met.
    "gpt-oss": _moe(
        "gpt_oss",
        num_local_experts=5,
        intermediate_size=48,
        head_dim=16,
        sliding_window=8,
        swiglu_limit=1.2,
        rope_parameters={"rope_type": "yarn", "rope_theta": 150000.0, "factor": 4.0, "original_max_position_embeddings": 32},
    ),
    # Chunks of less than a page and more than a generated token; a temperature that rises within a prompt.
    "llama4": _llama4(),
    "llama4-every-other": _llama4(
        interleave_moe_layer_step=2,
        num_experts_per_tok=2,
        use_qk_norm=False,
        attn_temperature_tuning=False,
        attention_bias=True,
    ),
    "glm4-moe": _glm4(num_nextn_predict_layers=0),
    "glm4-moe-groups": _glm4(
        n_routed_experts=9, n_group=3, topk_group=2, use_qk_norm=True, attention_bias=False, routed_scaling_factor=1.5
    ),
}
"""What config.json shall hold, by the name that tests use. At most eight heads but for those that say so."""

WIDE = _llama(hidden_size=64, num_attention_heads=16, num_key_value_heads=4, head_dim=4)
"""Sixteen heads: for degrees of 12 and 16."""


def build(config: dict[str, Any], folder: Path, *, dtype: torch.dtype | None = None, seed: int = 0, **saving: Any) -> Path:
    """A checkpoint of `config` in `folder`, as transformers saves it, float32 unless told; `saving` is for save_pretrained."""
    import torch
    from torch import nn
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    # What Gemma stores of a norm is its distance from one.
    one = 0.0 if config["model_type"].startswith("gemma") else 1.0
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(noise * 0.3 if name.endswith("bias") else one + noise * 0.2)
            else:
                parameter.copy_(noise * (0.5 if id(parameter) in tables else 1.3 * parameter.shape[-1] ** -0.5))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.2)
    model.to(dtype or torch.float32).save_pretrained(folder, **saving)
    return folder
