"""The architectures: parameter totals of published models, names in real checkpoints, and the modules of transformers.

Real configs and checkpoint indexes are found below $SHARDWISE_TEST_DATA/configs; without it those tests are skipped.
"""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from shardwise.errors import ConfigError
from shardwise.spec.axes import BITS, Axis, Fused, Source
from shardwise.spec.binding import names
from shardwise.spec.blocks import MLP, Attention, Linear, attentions, walk
from shardwise.spec.config import read_model
from shardwise.spec.model import layer_blocks, model_weights, parameters
from shardwise.spec.models import MODELS, MULTIMODAL
from shardwise.spec.moe import MoE
from tests.spec.latent import LATENT
from tests.spec.published import CHANGES, INDEXES, OTHER_INDEXES, PUBLISHED

SMALL = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "vocab_size": 96, "n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [2.0, 3.0, 4.0, 8.0]}
LINEAR = {"rope_type": "linear", "factor": 8.0}
YARN_ALONE = {key: value for key, value in YARN.items() if key != "rope_theta"}
NEOX = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"} | {"model_type": "gpt_neox"}
TINY = {
    "llama": SMALL | {"model_type": "llama"},
    "llama, every bias": SMALL | {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "rope_parameters": YARN},
    "llama, tied": SMALL | {"model_type": "llama", "tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh"},
    "llama, wide heads": SMALL | {"model_type": "llama", "head_dim": 20, "num_key_value_heads": None},
    "mistral": SMALL | {"model_type": "mistral", "sliding_window": 16},
    "mistral, everything seen": SMALL | {"model_type": "mistral", "sliding_window": None, "head_dim": 12},
    "qwen2": SMALL | {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2, windows": SMALL | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen3": SMALL | {"model_type": "qwen3", "head_dim": 16},
    "qwen3, windows": SMALL
    | {"model_type": "qwen3", "attention_bias": True, "use_sliding_window": True, "sliding_window": 8, "layer_types": SLIDING},
    "granite": SMALL
    | {"model_type": "granite", "embedding_multiplier": 12.0, "attention_multiplier": 0.25, "residual_multiplier": 0.22,
       "logits_scaling": 8.0, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "phi3": SMALL | {"model_type": "phi3", "pad_token_id": 0},
    "phi3, longrope": SMALL
    | {"model_type": "phi3", "pad_token_id": 0, "rope_scaling": LONGROPE, "original_max_position_embeddings": 32,
       "sliding_window": 24},
    "phi3, part of the head": SMALL
    | {"model_type": "phi3", "pad_token_id": 0, "partial_rotary_factor": 0.75, "tie_word_embeddings": True},
    "gemma": SMALL | {"model_type": "gemma", "num_key_value_heads": 1, "hidden_act": "gelu", "hidden_activation": None},
    "gemma2": SMALL | {"model_type": "gemma2", "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 24},
    "gemma3_text": SMALL
    | {"model_type": "gemma3_text", "head_dim": 16, "sliding_window": 8, "sliding_window_pattern": 2, "rope_scaling": LINEAR},
    "olmo2": SMALL | {"model_type": "olmo2", "pad_token_id": 0, "attention_bias": True, "rope_parameters": YARN},
    "olmo3": SMALL
    | {"model_type": "olmo3", "pad_token_id": 0, "sliding_window": 8, "layer_types": SLIDING, "rope_scaling": YARN_ALONE},
    "gpt_neox": NEOX,
    "gpt_neox, in turn": NEOX | {"use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True},
    "falcon": NEOX | {"model_type": "falcon", "bias": True},
    "falcon, grouped": NEOX | {"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False},
    "falcon, in turn": NEOX | {"model_type": "falcon", "multi_query": False, "parallel_attn": False, "ffn_hidden_size": 80},
    "mixtral": SMALL | {"model_type": "mixtral", "num_local_experts": 5, "sliding_window": 16},
    "qwen2_moe": SMALL
    | {"model_type": "qwen2_moe", "num_experts": 5, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40,
       "decoder_sparse_step": 2, "qkv_bias": False},
    "qwen3_moe": SMALL
    | {"model_type": "qwen3_moe", "num_experts": 9, "moe_intermediate_size": 24, "head_dim": 16, "mlp_only_layers": [1]},
    "granitemoe": SMALL | {"model_type": "granitemoe", "num_local_experts": 5, "tie_word_embeddings": True},
    "gpt_oss": SMALL | {"model_type": "gpt_oss", "num_local_experts": 5, "head_dim": 16, "sliding_window": 8},
    "llama4_text": SMALL
    | {"model_type": "llama4_text", "num_local_experts": 5, "head_dim": 16, "attention_chunk_size": 8,
       "intermediate_size_mlp": 56, "interleave_moe_layer_step": 2, "no_rope_layers": [1, 0, 1]},
    "glm4_moe": SMALL
    | {"model_type": "glm4_moe", "n_routed_experts": 8, "moe_intermediate_size": 24, "attention_bias": True,
       "first_k_dense_replace": 2, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3},
    **LATENT,
    "gpt2": GPT2,
    "gpt2, narrow and untied": GPT2 | {"n_inner": 72, "tie_word_embeddings": False, "scale_attn_weights": False},
}  # fmt: skip


@pytest.fixture(scope="module")
def configs():
    folder = os.environ.get("SHARDWISE_TEST_DATA", "")
    if not (Path(folder) / "configs").is_dir() or not folder:
        pytest.skip("SHARDWISE_TEST_DATA names no folder with configs/: real configs and indexes are not at hand")
    return Path(folder) / "configs"


def load(configs, name):
    return json.loads((configs / f"{name}.json").read_text()) | CHANGES.get(name, {})


def stored(model, new=False):
    """name of a stored tensor -> its shape, put together from the weights that it holds; aliases not among them.

    `new`: where there is another way in which a weight may be stored, that one."""
    shapes, rows = {}, defaultdict(list)
    for weight in model_weights(model):
        source = (weight.also if new else None) or weight.source or Source(weight.name)
        for name in names(weight, source):
            shape = weight.shape[1:] if "*" in source.tensor else weight.shape
            if source.fused:
                rows[name] += [row for piece in source.fused.pieces(range(shape[source.axis])) for row in piece]
                shape = (*shape[: source.axis], len(rows[name]), *shape[source.axis + 1 :])
            else:
                assert name not in shapes
            if source.packed:
                groups = (*shape[:-1], shape[-1] // source.packed.size)
                blocks = name.endswith(source.packed.blocks)
                shape = (*groups, source.packed.size // source.packed.per_byte) if blocks else groups
            shapes[name] = (*shape[:-2], shape[-1], shape[-2]) if source.transposed else shape
    for found in rows.values():
        assert sorted(found) == list(range(len(found)))
    return shapes


class TestPublished:
    @pytest.mark.parametrize("name", PUBLISHED)
    def test_total(self, configs, name):
        assert parameters(read_model(load(configs, name))) == PUBLISHED[name]

    @pytest.mark.parametrize("name", INDEXES)
    def test_names_are_those_of_the_checkpoint(self, configs, name):
        index = json.loads((configs / "index" / f"{name}.index.json").read_text())
        config, size, extra = INDEXES[name]
        model = read_model(load(configs, config))
        named = [n for n in index["weight_map"] if not (n.endswith(model.ignored) or n.startswith(model.foreign))]
        there = {name.removeprefix(model.prefix) for name in named} - set(model.embed.tokens.aliases)
        assert set(stored(model)) == there
        if extra is not None:
            assert index["metadata"]["total_size"] == (PUBLISHED[config] + extra) * size

    def test_no_index_is_forgotten(self, configs):
        there = {path.name.removesuffix(".index.json") for path in (configs / "index").glob("*.index.json")}
        assert there == set(INDEXES) | OTHER_INDEXES

    def test_fp8_bytes(self, configs):
        model = read_model(load(configs, "Qwen3-32B-FP8"))
        size = sum(math.prod(w.shape) * BITS[w.dtype or model.dtype] // 8 for w in model_weights(model))
        h, q, kv, mlp, layers, vocab = 5120, 64 * 128, 8 * 128, 25600, 64, 151936
        cut = h * (q + 2 * kv) + q * h + 3 * h * mlp
        norms = 2 * h + 2 * 128
        assert size == layers * (cut + cut // 128**2 * 4 + norms * 2) + (2 * vocab * h + h) * 2

    def test_packed_bytes(self, configs):
        """gpt-oss-20b as it is stored: a byte for two numbers of an expert and one for each 32, two for all else."""
        size = 0
        for name, shape in stored(read_model(load(configs, "gpt-oss-20b"))).items():
            size += math.prod(shape) * (1 if name.endswith(("_blocks", "_scales")) else 2)
        index = json.loads((configs / "index" / "gpt-oss-20b.model.safetensors.index.json").read_text())
        assert size == index["metadata"]["total_size"]

    def test_all_other_configs_are_refused_by_name(self, configs):
        accepted = set()
        for path in sorted(configs.rglob("*.json")):
            name = str(path.relative_to(configs).with_suffix(""))
            if name.startswith("index"):
                continue
            try:
                read_model(json.loads(path.read_text()))
                accepted.add(name)
            except ConfigError as error:
                assert "config" in str(error)
        same = {"Llama-3.1-70B-Instruct-FP8", "mediatek/Llama-3.2-1B-Instruct", "mediatek/Qwen3-1.7B"}
        assert accepted == (set(PUBLISHED) - set(CHANGES)) | same


WHOLE = ("shared_expert_gate", "q_a_proj", "kv_a_proj_with_mqa")
"""Linears that are not cut: of one output, or of a latent."""


class TestFamilies:
    """What every tree must keep to, so that layout, loader and modules can rely on it."""

    @pytest.mark.parametrize("name", TINY)
    def test_axes(self, name):
        model = read_model(TINY[name])
        for _, block in layer_blocks(model):
            for attention in (node for _, node in walk(block) if isinstance(node, Attention)):
                group = attention.heads // attention.kv_heads
                q = Axis(attention.heads * attention.dim, "q", attention.dim, group)
                kv = Axis(attention.kv_heads * attention.dim, "kv", attention.dim, group)
                assert (attention.q.out, attention.o.inp) == (q, q)
                assert (attention.k.out, attention.v.out) == (kv, kv)
            for _, node in walk(block):
                if isinstance(node, Linear):
                    cut = [node.out.cut, node.inp.cut]
                    assert cut.count(None) == (2 if node.name in WHOLE else 1)
        table, head = model.embed.tokens, model.head.linear
        assert head.out == table.rows == Axis(96, "vocab")
        assert head.tied in (None, f"{table.name}.weight")
        assert table.aliases == ((f"{head.name}.weight",) if head.tied else ())

    @pytest.mark.parametrize("name", TINY)
    def test_runs_cover_the_layers_in_order(self, name):
        model = read_model(TINY[name])
        assert model.layers == 3
        start = 0
        for run in model.runs:
            assert run.start == start
            start += run.count
        assert all(a.block != b.block for a, b in zip(model.runs, model.runs[1:], strict=False))

    @pytest.mark.parametrize(
        ("name", "windows"),
        [
            ("llama", [None, None, None]),
            ("mistral", [16, 16, 16]),
            ("mistral, everything seen", [None, None, None]),
            ("qwen2", [None, None, None]),
            ("qwen2, windows", [None, 8, 8]),
            ("qwen3, windows", [8, None, 8]),
            ("phi3, longrope", [24, 24, 24]),
            ("gemma2", [8, None, 8]),
            ("gemma3_text", [8, None, 8]),
            ("olmo3", [8, None, 8]),
        ],
    )
    def test_windows(self, name, windows):
        model = read_model(TINY[name])
        assert [a.window for _, block in layer_blocks(model) for a in attentions(block)] == windows

    def test_equal_layers_are_one_block(self):
        runs = read_model(TINY["qwen3, windows"]).runs
        assert runs[0].block is runs[2].block

    def test_a_window_as_long_as_the_context_is_none(self):
        model = read_model(TINY["mistral"] | {"sliding_window": 64})
        assert model == read_model(TINY["mistral"] | {"sliding_window": None})

    def test_mistral_without_a_window_key_has_transformers_default(self):
        config = {key: value for key, value in TINY["mistral"].items() if key != "sliding_window"}
        found = read_model(config | {"max_position_embeddings": 8192})
        assert {a.window for run in found.runs for a in attentions(run.block)} == {4096}

    def test_fused_tensors_hold_q_k_v_and_gate_up_in_that_order(self):
        for name, tensor in (("phi3", "qkv_proj"), ("gpt2", "c_attn")):
            (attention,) = attentions(read_model(TINY[name]).runs[0].block)
            sizes = [linear.out.size for linear in (attention.q, attention.k, attention.v)]
            starts = [0, sizes[0], sizes[0] + sizes[1]]
            found = [attention.q.fused, attention.k.fused, attention.v.fused]
            assert found == [Fused(tensor, start, size, size) for start, size in zip(starts, sizes, strict=True)]
        linears = {node.name: node for _, node in walk(read_model(TINY["phi3"]).runs[0].block) if isinstance(node, Linear)}
        assert linears["gate_proj"].fused == Fused("gate_up_proj", 0, 80, 80)
        assert linears["up_proj"].fused == Fused("gate_up_proj", 80, 80, 80)

    def test_context_and_dtype(self):
        assert (read_model(TINY["llama"]).context, read_model(GPT2).context) == (64, 64)
        assert read_model(TINY["llama"]).dtype == "float32"
        assert read_model(TINY["llama"] | {"torch_dtype": "bfloat16"}).dtype == "bfloat16"
        assert read_model(GPT2 | {"dtype": "float16"}).dtype == "float16"

    def test_gpt2_names_may_stand_below_a_prefix_and_its_masks_are_ignored(self):
        model = read_model(GPT2)
        assert model.prefix == "transformer."
        assert "h.0.attn.bias".endswith(model.ignored)
        assert not "h.0.attn.c_attn.bias".endswith(model.ignored)

    def test_only_numbers_of_layers_enter_the_count(self):
        few, many = (read_model(TINY["llama"] | {"num_hidden_layers": n}) for n in (3, 30))
        assert replace(many.runs[0], count=3) == few.runs[0]


def reference(transformers, config):
    """transformers' module for the config, on no device: shapes without memory. Kimi-K2 is a DeepSeek-V3 there."""
    import torch

    name = {"kimi_k2": "deepseek_v3"}.get(config["model_type"], config["model_type"])

    arguments = {key: value for key, value in config.items() if key not in ("model_type", "auto_map", "quantization_config")}
    with torch.device("meta"):
        found = transformers.AutoConfig.for_model(name, **json.loads(json.dumps(arguments)))
        return transformers.AutoModelForCausalLM.from_config(found)


# What transformers 5 calls in memory what checkpoints of Granite call otherwise.
NEW = {"input_linear.weight": "experts.gate_up_proj", "output_linear.weight": "experts.down_proj", "router.layer.": "router."}


def _renamed(name):
    for old, new in NEW.items():
        name = name.replace(f".block_sparse_moe.{old}", f".block_sparse_moe.{new}")
    return name


class TestAsTransformers:
    @pytest.mark.parametrize("name", PUBLISHED)
    def test_published_totals(self, transformers, configs, name):
        config = load(configs, name)
        module = reference(transformers, config.get("text_config", config))
        # What corrects the choice of experts is learned as well, by a rule of its own: transformers has it among the buffers.
        learned = [b for n, b in module.named_buffers() if n.endswith("e_score_correction_bias")]
        assert sum(p.numel() for p in [*module.parameters(), *learned]) == PUBLISHED[name]

    @pytest.mark.parametrize("name", TINY)
    def test_names_and_shapes(self, transformers, name):
        model = read_model(TINY[name])
        state = reference(transformers, TINY[name]).state_dict()
        ours, head = stored(model, new=True), model.head.linear
        ours = {_renamed(name): shape for name, shape in ours.items()}
        ours["lm_head.weight"] = ours[head.tied] if head.tied else ours.pop(f"{head.name}.weight")
        prefix = model.prefix if any(key.startswith(model.prefix) for key in state) else ""
        ours = {(key if key.startswith("lm_head") else prefix + key): shape for key, shape in ours.items()}
        assert ours == {key: tuple(tensor.shape) for key, tensor in state.items()}

    @pytest.mark.parametrize("name", TINY)
    def test_scales_and_windows_of_attention(self, transformers, name):
        model, module = read_model(TINY[name]), reference(transformers, TINY[name])
        for path, block in layer_blocks(model):
            (ours,) = attentions(block)
            theirs = module.get_submodule(f"{model.prefix}{path}.{ours.name}")
            scale = theirs.inv_norm_factor if name.startswith("falcon") else theirs.scaling
            assert ours.scale == pytest.approx(scale, rel=1e-12)
            if isinstance(ours, Attention):
                assert ours.dim == (theirs.head_size if name.startswith("gpt_neox") else theirs.head_dim)
            else:
                assert ours.nope_dim + ours.rope.dim == theirs.qk_head_dim
            if name.startswith(("qwen2", "qwen3", "gemma2", "gemma3", "olmo3")) and name != "qwen2_moe":
                assert ours.window == theirs.sliding_window

    @pytest.mark.parametrize("name", [n for n in TINY if not n.startswith("gpt2")])
    def test_rotary_frequencies(self, transformers, name):
        config = {key: value for key, value in TINY[name].items() if key != "model_type"}
        found = transformers.AutoConfig.for_model(TINY[name]["model_type"], **json.loads(json.dumps(config)))
        module = reference(transformers, TINY[name])
        # A model of Llama 4 alone says that it stands where it would in a multimodal one.
        rotary = type((module.model if name.startswith("llama4") else module.base_model).rotary_emb)(found)
        two = name in ("gemma3_text", "olmo3")
        every = [a for run in read_model(TINY[name]).runs for a in attentions(run.block)]
        ropes = {(two and a.window, a.rope) for a in every if a.rope}
        assert len(ropes) == 1 + two
        for window, ours in ropes:
            kind = ("sliding_attention_" if window else "full_attention_") if two else ""
            assert ours.frequencies == pytest.approx(getattr(rotary, f"{kind}inv_freq").tolist(), rel=1e-6)
            assert ours.scale == pytest.approx(getattr(rotary, f"{kind}attention_scaling"), rel=1e-12)

    @pytest.mark.parametrize("name", [n for n in TINY if n != "gpt_oss"])
    def test_activations(self, transformers, name):
        """The two kinds of gelu are nearer to each other than the logits of tiny models could tell."""
        import torch

        from shardwise.nn.kernels.activations import ACTIVATIONS

        nodes = [node for run in read_model(TINY[name]).runs for _, node in walk(run.block)]
        [ours] = {node.activation for node in nodes if isinstance(node, MLP | MoE)}
        modules = reference(transformers, TINY[name]).modules()
        theirs = next(m for m in modules if type(m).__name__.endswith(("MLP", "Experts")))
        act = next(getattr(theirs, key) for key in ("act_fn", "activation_fn", "act") if hasattr(theirs, key))
        x = torch.linspace(-4, 4, 101, dtype=torch.float64)
        assert torch.allclose(ACTIVATIONS[ours](x), act(x), rtol=0, atol=1e-9)

    def test_granite_multipliers(self, transformers):
        model, module = read_model(TINY["granite"]), reference(transformers, TINY["granite"])
        block = model.runs[0].block
        assert model.embed.scale == module.model.embedding_multiplier == 12.0
        assert model.head.scale == 1 / module.config.logits_scaling == 0.125
        assert [part.scale for part in block.blocks] == [module.model.layers[0].residual_multiplier] * 2

    @pytest.mark.parametrize("model_type", MODELS)
    def test_defaults_are_transformers(self, transformers, model_type):
        """A config that states the sizes alone means what transformers takes it to mean."""
        sizes = GPT2 if model_type == "gpt2" else SMALL | {"model_type": model_type, "pad_token_id": 0}
        if model_type in ("deepseek_v2", "deepseek_v3", "kimi_k2"):
            sizes |= {"num_key_value_heads": 6, "num_experts_per_tok": 8}
        if model_type in MULTIMODAL:
            sizes = {"model_type": model_type, "text_config": SMALL}
        filled = reference(transformers, sizes).config.to_dict()
        if model_type in MULTIMODAL and "text_config" not in filled:
            filled = {"model_type": model_type, "text_config": filled}
        assert read_model(sizes) == read_model({**filled, "model_type": model_type, "architectures": None, "dtype": None})
