"""The architectures, by the `model_type` of a config. A new one is a function from fields to a model, and a line here."""

from __future__ import annotations

from collections.abc import Callable

from shardwise.spec.model import Model
from shardwise.spec.models.deepseek import deepseek_v2, deepseek_v3, kimi_k2
from shardwise.spec.models.falcon import falcon
from shardwise.spec.models.fields import Fields
from shardwise.spec.models.gemma import gemma, gemma2, gemma3, gemma3_text
from shardwise.spec.models.glm4_moe import glm4_moe
from shardwise.spec.models.gpt2 import gpt2
from shardwise.spec.models.gpt_neox import gpt_neox
from shardwise.spec.models.gpt_oss import gpt_oss
from shardwise.spec.models.granite import granite, granitemoe
from shardwise.spec.models.llama import llama
from shardwise.spec.models.llama4 import llama4, llama4_text
from shardwise.spec.models.mistral import mistral
from shardwise.spec.models.mixtral import mixtral
from shardwise.spec.models.olmo import olmo2, olmo3
from shardwise.spec.models.phi3 import phi3
from shardwise.spec.models.qwen import qwen2, qwen3
from shardwise.spec.models.qwen_moe import qwen2_moe, qwen3_moe

MODELS: dict[str, Callable[[Fields], Model]] = {
    "deepseek_v2": deepseek_v2,
    "deepseek_v3": deepseek_v3,
    "falcon": falcon,
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3": gemma3,
    "gemma3_text": gemma3_text,
    "glm4_moe": glm4_moe,
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "gpt_oss": gpt_oss,
    "granite": granite,
    "granitemoe": granitemoe,
    "kimi_k2": kimi_k2,
    "llama": llama,
    "llama4": llama4,
    "llama4_text": llama4_text,
    "mistral": mistral,
    "mixtral": mixtral,
    "olmo2": olmo2,
    "olmo3": olmo3,
    "phi3": phi3,
    "qwen2": qwen2,
    "qwen2_moe": qwen2_moe,
    "qwen3": qwen3,
    "qwen3_moe": qwen3_moe,
}

REFUSED = {
    "deepseek_v32": "its sparse attention, for which an indexer picks tokens, is not",
    "glm_moe_dsa": "its sparse attention, for which an indexer picks tokens, is not",
}
"""Relatives of what is implemented, each with what is missing."""

MULTIMODAL = ("gemma3", "llama4")
"""Those of which the text part alone is run: their config holds it at `text_config`."""
