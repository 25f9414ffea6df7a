"""From a config.json to a model: the architecture's function, then a check that nothing it asks for was overlooked.

A setting that is known to change numbers (`NEUTRAL`, and name patterns) and that nobody read is refused by name; nothing is
half-run. Nothing here is code from a checkpoint: `auto_map` and the like are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import groupby
from math import lcm
from typing import Any

from shardwise.errors import ConfigError
from shardwise.spec import formats
from shardwise.spec.axes import Axis
from shardwise.spec.blocks import Block, Linear, walk
from shardwise.spec.formats import Dense, Format
from shardwise.spec.model import Model, Run
from shardwise.spec.models import MODELS, MULTIMODAL, REFUSED
from shardwise.spec.models.fields import Fields, refuse_unread, shown
from shardwise.spec.models.kinds import FULL
from shardwise.spec.rewrite import rewrite

__all__ = ["Fields", "read_model"]

NO = (False,)  # and 0, which equals it
ONE = (1,)
NONE: tuple[object, ...] = ()

NEUTRAL: tuple[tuple[str, tuple[object, ...]], ...] = (
    # Attention: what it sees, and how scores are made.
    ("sliding_window", NONE),
    ("use_sliding_window", NO),
    ("sliding_window_pattern", NONE),
    ("attention_chunk_size", NONE),
    ("full_attention_interval", ONE),
    ("index_*", NONE),
    ("attn_temperature_tuning", NO),
    ("query_pre_attn_scalar", NONE),
    ("scale_attn_weights", ONE),
    ("scale_attn_by_inverse_layer_idx", NO),
    ("reorder_and_upcast_attn", NO),
    ("clip_qkv", NONE),
    ("qkv_clip", NONE),
    ("*softcap*", NONE),
    ("*sink*", NO),
    ("*qk_norm", NO),
    ("*qk_layernorm", NO),
    ("*qk_l2_norm", NO),
    ("multi_query", NO),
    ("parallel_attn", NO),
    ("use_parallel_residual", NO),
    ("new_decoder_architecture", NO),
    ("add_cross_attention", NO),
    ("cross_attention_hidden_size", NONE),
    ("is_encoder_decoder", NO),
    ("use_bidirectional_attention", NO),
    ("pruned_heads", ({},)),
    # Positions.
    ("rope_scaling", ({},)),
    ("rope_parameters", ({},)),
    ("partial_rotary_factor", ONE),
    ("rotary_pct", ONE),
    ("rotary_dim", NONE),
    ("rotary_emb_base", NONE),
    ("rope_interleave*", NO),
    ("rope_local_base_freq", NONE),
    ("use_mrope", NO),
    ("mrope*", NONE),
    ("no_rope_layer*", (0, [])),
    ("*alibi", NO),
    ("position_embedding_type", ("rope", "rotary")),
    # Layers: which kinds there are, and what surrounds them.
    ("layers_block_type", NONE),
    ("block_types", NONE),
    ("hybrid_*", NONE),
    ("mamba*", NONE),
    ("ssm_*", NONE),
    ("linear_attn*", NONE),
    ("linear_num_*", NONE),
    ("mlp_layer_types", NONE),
    ("per_layer_config", ({},)),
    ("hidden_size_per_layer_input", (0,)),
    ("num_kv_shared_layers", (0,)),
    ("num_nextn_predict_layers", (0,)),
    ("*lora_rank", NONE),
    ("qk_rope_head_dim", NONE),
    ("qk_nope_head_dim", NONE),
    ("v_head_dim", NONE),
    ("*expert*", NO),
    ("routed_scaling_factor", ONE),
    ("scoring_func", ("softmax",)),
    ("topk_method", ("greedy",)),
    ("n_group", ONE),
    ("topk_group", ONE),
    ("first_k_dense_replace", (0,)),
    ("mlp_only_layers", ([],)),
    ("decoder_sparse_step", ONE),
    ("intermediate_size_mlp", NONE),
    ("swiglu_*", NONE),
    ("moe_*", NO),
    ("apply_residual_connection_post_layernorm", NO),
    ("use_post_norm", NO),
    ("scale_depth", NONE),
    ("dim_model_base", NONE),
    ("hidden_act", NONE),
    ("hidden_activation", NONE),
    ("activation_function", NONE),
    # Biases and scales.
    ("*bias", NO),
    ("*_multiplier", ONE),
    ("logits_scaling", ONE),
    ("logit_scale", ONE),
    ("scale_emb", ONE),
    ("scale_embedding", NO),
    ("mup_*", NONE),
    # Other towers.
    ("vision_config", NONE),
    ("audio_config", NONE),
    ("*quantization_config", NONE),
    ("compression_config", NONE),
)
"""Keys that change numbers, each with the values that do not. A model function that reads a key answers for it itself."""

NEUTRAL_QUANTIZATION: tuple[tuple[str, tuple[object, ...]], ...] = (
    ("lm_head", NO),
    ("dynamic", ({}, False)),
    ("modules_in_block_to_quantize", NONE),
    ("version", ("gemm", "GEMM")),
    ("zero_point", (True,)),
    ("activation_scheme", ("dynamic",)),
    ("fmt", ("e4m3",)),
    ("scale_fmt", ("float",)),
    ("checkpoint_format", ("gptq", "gemm")),
    ("is_marlin_format", NO),
)
"""The same within `quantization_config`: variants whose tensors are other ones."""


KEPT_DENSE = ("modules_to_not_convert", "ignored_layers", "ignore")
"""Under which names a `quantization_config` lists the modules that are not quantised."""


def read_model(config: Mapping[str, Any]) -> Model:
    """The model that a parsed config.json describes.

    Raises ConfigError, naming key, value and what would work, for anything missing, out of range or not implemented.
    """
    if not isinstance(config, Mapping) or not all(isinstance(key, str) for key in config):
        raise ConfigError(f"config.json must hold an object; it holds {shown(config)}")
    fields = Fields(config)
    name = _architecture(fields)
    model = MODELS[name](fields)
    quantization = fields.section("quantization_config")
    for part in (fields, fields.section("text_config")):
        _check_layer_types(part)
        refuse_unread(part, NEUTRAL, f"model_type {name!r}")
    return _quantized(model, quantization) if quantization.mapping() else model


def _architecture(fields: Fields) -> str:
    """The `model_type`, if it is known and has the head of a language model."""
    name = fields.mapping().get("model_type")
    if fields.has("text_config") and name not in MULTIMODAL:
        works = f"nested configs are implemented for {', '.join(MULTIMODAL)} alone; a text model's would work"
        raise ConfigError(f"config.json: model_type {shown(name)} holds its text model in text_config; {works}")
    known = ", ".join(sorted(MODELS))
    if not isinstance(name, str):
        raise ConfigError(f"config.json: model_type is {shown(name)}; known are {known}")
    if name in REFUSED:
        raise ConfigError(f"config.json: model_type {shown(name)} is not implemented: {REFUSED[name]}; known are {known}")
    if name not in MODELS:
        near = get_close_matches(name, MODELS, n=3, cutoff=0.5)
        hint = f"nearest: {', '.join(near)}; " if near else ""
        raise ConfigError(f"config.json: model_type {shown(name)} is not implemented; {hint}known are {known}")
    classes = fields.names("architectures")
    heads = ("ForCausalLM", "LMHeadModel", *(("ForConditionalGeneration",) if name in MULTIMODAL else ()))
    if classes and not any(c.endswith(heads) for c in classes):
        raise fields.wrong("architectures", "only language models (...ForCausalLM, GPT2LMHeadModel) are implemented")
    return name


def _check_layer_types(fields: Fields) -> None:
    """A family without a choice of attentions may still list them, if all are full ones."""
    if any(key == "layer_types" for key, _ in fields.unread()):
        kinds = fields.names("layer_types")
        if any(kind != FULL for kind in kinds):
            raise fields.wrong("layer_types", f"only {FULL!r} is implemented for this model_type")


# --- quantisation -----------------------------------------------------------------------------------------------------


def _quantized(model: Model, quantization: Fields) -> Model:
    """The model with its layers' linears in the stored format; head, tables and the modules that it names stay dense."""
    form = _read_format(quantization)
    pack = lcm(form.pack("out"), form.pack("in"))
    for axis in _head_axes(model):
        if axis.grain % pack:
            raise ConfigError(
                f"config.json: quantization_config: {form.name} stores {pack} values in a word, which does not divide heads "
                f"of {axis.grain}; dense weights would work"
            )
    kept = [name for key in KEPT_DENSE for name in quantization.names(key)]
    blocks: dict[tuple[int, tuple[str, ...]], Block] = {}
    layers = []
    for run in model.runs:
        linears = [(path, node) for path, node in walk(run.block) if isinstance(node, Linear)]
        for i in range(run.start, run.start + run.count):
            dense = tuple(_join(p, n.name) for p, n in linears if any(_names(k, f"{run.name}.{i}.{p}", n) for k in kept))
            key = (id(run.block), dense)
            if key not in blocks:
                blocks[key] = _rewritten(run.block, form, dense)
            layers.append((run.name, i, blocks[key]))
    return replace(model, runs=tuple(_runs(layers)))


def _head_axes(model: Model) -> Iterator[Axis]:
    """The axes that are cut by heads."""
    nodes = (node for run in model.runs for _, node in walk(run.block))
    axes = (axis for node in nodes if isinstance(node, Linear) for axis in (node.out, node.inp))
    return (axis for axis in axes if axis.cut in ("q", "kv"))


def _read_format(quantization: Fields) -> Format:
    """The format, after a check of the types that `formats.of` takes for granted."""
    refuse_unread(quantization, NEUTRAL_QUANTIZATION, "quantization_config")
    for key in ("bits", "w_bit", "group_size", "q_group_size"):
        quantization.optional_integer(key, most=2**20)
    quantization.flag("desc_act", False)
    method = quantization.mapping().get("quant_method")
    block = quantization.mapping().get("weight_block_size")
    if not isinstance(method, str):
        raise quantization.wrong("quant_method", "known are gptq, awq, fp8 (blocks), mxfp4")
    if isinstance(block, list) and any(isinstance(b, bool) for b in block):
        raise quantization.wrong("weight_block_size", "fp8 is understood with blocks, as [128, 128]")
    return formats.of(quantization.mapping())


def _runs(layers: list[tuple[str, int, Block]]) -> Iterator[Run]:
    """(run, index, block) of consecutive layers, as runs of the same block."""
    for _, group in groupby(layers, key=lambda layer: (layer[0], id(layer[2]))):
        equal = list(group)
        name, start, block = equal[0]
        yield Run(name, start, len(equal), block)


def _names(kept: str, path: str, linear: Linear) -> bool:
    """Whether `kept` names the stored linear at `path`, a module above it, or its end: whole segments only, `*` for any."""
    stored = linear.fused.name if linear.fused else linear.name
    return fnmatchcase(f".{path}.{stored}.", f"*.{kept}.*")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _rewritten(block: Block, form: Format, dense: tuple[str, ...]) -> Block:
    grain = lcm(*(measure(side) for measure in (form.pack, form.group) for side in ("out", "in")))

    def regrain(axis: Axis) -> Axis:
        return replace(axis, grain=lcm(axis.grain, grain)) if axis.cut in ("mlp", "moe") else axis

    def change(path: str, linear: Linear) -> Linear:
        # The dense ones of an MLP too: its linears must agree on where their common axis may be cut.
        linear = replace(linear, out=regrain(linear.out), inp=regrain(linear.inp))
        if path in dense:
            return linear
        _check_stored(linear, form)
        return replace(linear, format=form)

    changed: Block = rewrite(block, change)
    return changed


def _check_stored(linear: Linear, form: Format) -> None:
    if isinstance(form, Dense):
        # Packed as gpt-oss is, and unpacked while it is loaded.
        if not linear.experts or "*" in linear.name:
            raise ConfigError(
                f"config.json: quantization_config: mxfp4 is implemented for experts that share a tensor, and {linear.name!r} "
                "is none; the unquantised checkpoint would work"
            )
        return
    if linear.transposed:
        raise ConfigError(
            f"config.json: quantization_config: {form.name} is not implemented for weights stored transposed, as "
            f"{linear.name!r} is; dense weights would work"
        )
    whole = lcm(form.pack("out"), form.group("out"))
    if linear.fused and (linear.fused.start % whole or linear.fused.block % whole):
        raise ConfigError(
            f"config.json: quantization_config: {form.name} keeps {whole} rows together, and {linear.name!r} does not start "
            f"and end on a multiple of that in {linear.fused.name!r}; dense weights would work"
        )
