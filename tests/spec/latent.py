"""Tiny configs of the families with latent attention, for the tests of all families."""

from __future__ import annotations

from typing import Any

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 64,
    "q_lora_rank": 20,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 7,
    "n_routed_experts": 8,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "num_experts_per_tok": 3,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
GROUPS = {"n_group": 4, "topk_group": 2}

LATENT: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"model_type": "deepseek_v2", **SIZES, **GROUPS, "topk_method": "group_limited_greedy"},
    "deepseek_v2, lite": {
        "model_type": "deepseek_v2",
        **SIZES,
        "q_lora_rank": None,
        "rope_scaling": {**YARN, "mscale_all_dim": 0.7},
    },
    "deepseek_v3": {
        "model_type": "deepseek_v3",
        **SIZES,
        **GROUPS,
        "attention_bias": True,
        "rope_interleave": False,
        "rope_scaling": {**YARN, "mscale": 0.8, "mscale_all_dim": 0.5},
    },
}
