"""Reading a config.json: typed fields, formats put on a tree, and that nothing but a ConfigError ever comes out."""

from __future__ import annotations

import copy
import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardwise.errors import ConfigError
from shardwise.spec.blocks import Linear, walk
from shardwise.spec.config import NEUTRAL, NEUTRAL_QUANTIZATION, Fields, read_model
from shardwise.spec.formats import AWQ, GPTQ, Dense, FP8Block
from shardwise.spec.layout import Layout, Shares
from shardwise.spec.mesh import Mesh
from shardwise.spec.model import Model, layer_blocks, model_weights, parameters
from shardwise.spec.models import MODELS
from shardwise.spec.models.fields import refuse_unread, shown
from shardwise.spec.models.rope import KEYS, KINDS

LLAMA = {
    "model_type": "llama", "vocab_size": 512, "hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "torch_dtype": "bfloat16",
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": None, "hidden_act": "silu", "tie_word_embeddings": False,
    "attention_bias": False, "mlp_bias": False, "head_dim": 64, "architectures": ["LlamaForCausalLM"],
}  # fmt: skip
GPT2 = {
    "model_type": "gpt2", "vocab_size": 512, "n_embd": 256, "n_layer": 3, "n_head": 4, "n_positions": 128, "n_inner": None,
    "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "scale_attn_weights": True, "tie_word_embeddings": True,
    "position_embedding_type": "absolute",
}  # fmt: skip
WINDOWS = {
    "use_sliding_window": True,
    "sliding_window": 32,
    "max_window_layers": 1,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 32, "long_factor": [2.0] * 32}
MULTIPLIERS = {
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.25,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
}
FAMILIES = {
    "llama": LLAMA,
    "mistral": LLAMA | {"model_type": "mistral", "sliding_window": 32},
    "qwen2": LLAMA | {"model_type": "qwen2"} | WINDOWS,
    "qwen3": LLAMA | {"model_type": "qwen3"} | WINDOWS,
    "granite": LLAMA | {"model_type": "granite"} | MULTIPLIERS,
    "phi3": LLAMA
    | {"model_type": "phi3", "rope_scaling": LONGROPE, "original_max_position_embeddings": 64, "partial_rotary_factor": 1.0},
    "gpt2": GPT2,
}
GPTQ4 = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}
AWQ4 = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": True}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic", "fmt": "e4m3"}
HUGE = pytest.param(10**5000, id="huge")  # too many digits for Python to print, hence for a test's name


def quantized(quantization, **changes):
    return read_model(LLAMA | {"quantization_config": quantization} | changes)


def linears(model):
    """path -> linear, of all layers."""
    return {
        f"{path}.{node.name}": node
        for root, block in layer_blocks(model)
        for path, node in walk(block, root)
        if isinstance(node, Linear)
    }


class TestFields:
    def test_values_of_the_right_type_pass(self):
        fields = Fields({"i": 3, "f": 0.5, "w": 2, "b": True, "s": "a", "l": [1, 2.5], "n": ["x"], "o": {"k": 1}, "z": None})
        assert fields.integer("i") == 3
        assert fields.number("f") == 0.5
        assert isinstance(fields.number("w"), float)
        assert fields.flag("b", False) is True
        assert fields.choice("s", {"a": 7}) == 7
        assert fields.numbers("l", 2, least=0, most=9) == (1.0, 2.5)
        assert fields.names("n") == ("x",)
        assert fields.section("o").integer("k") == 1
        assert fields.integer("z", 5) == 5
        assert fields.optional_integer("z") is None
        assert fields.optional_number("nowhere") is None
        assert fields.names("z") == ()

    @pytest.mark.parametrize("value", [True, False, 3.0, "3", [3], {}, 0, -1, 2**31, HUGE, math.nan])
    def test_not_an_integer(self, value):
        with pytest.raises(
            ConfigError, match=r"config\.json: hidden_size is .*; it must be a whole number from 1 to 2147483647"
        ):
            Fields({"hidden_size": value}).integer("hidden_size")

    @pytest.mark.parametrize("value", [True, "1", [], math.nan, math.inf, -math.inf, 10**400, -(10**400), HUGE, 1e19])
    def test_not_a_number(self, value):
        with pytest.raises(ConfigError, match=r"rope_theta is .*; it must be a number"):
            Fields({"rope_theta": value}).number("rope_theta")

    @pytest.mark.parametrize("value", [0, 1, "true", [], math.nan])
    def test_not_a_flag(self, value):
        with pytest.raises(ConfigError, match=r"mlp_bias is .*; it must be true or false"):
            Fields({"mlp_bias": value}).flag("mlp_bias", False)

    def test_a_section_names_its_path(self):
        with pytest.raises(ConfigError, match=r"config\.json: rope_scaling\.factor is 'x'"):
            Fields({"rope_scaling": {"factor": "x"}}).section("rope_scaling").number("factor")
        for value in ([], 3, "x", {1: 2}):
            with pytest.raises(ConfigError, match=r"rope_scaling is .*must be an object"):
                Fields({"rope_scaling": value}).section("rope_scaling")

    def test_what_was_read_is_remembered_even_if_it_was_absent_or_null(self):
        fields = Fields({"a": 1, "b": None, "c": 3, "d": 4})
        assert fields.has("d")
        fields.integer("a")
        fields.optional_integer("b")
        fields.integer("e", 1)
        assert fields.unread() == [("c", 3), ("d", 4)]

    @pytest.mark.parametrize("key", ["is_bias", "bias", "n_experts", "experts", "mup_x"])
    def test_patterns_of_unread_keys(self, key):
        neutral = (("*bias", (False,)), ("*expert*", (0,)), ("mup_*", ()))
        for harmless in (None, *dict(neutral).get("*bias" if "bias" in key else "*expert*" if "exp" in key else "mup_*")):
            refuse_unread(Fields({key: harmless}), neutral, "x")
        with pytest.raises(ConfigError, match=f"{key} is 7; x is implemented without it: .*null would work"):
            refuse_unread(Fields({key: 7}), neutral, "x")

    def test_long_values_are_cut_short(self):
        assert len(shown("x" * 1000)) == 80
        assert "too long to print" in shown(10**5000)


class TestNeutral:
    @pytest.mark.parametrize(("pattern", "harmless"), NEUTRAL, ids=[pattern for pattern, _ in NEUTRAL])
    def test_harmless_values_change_nothing_and_others_are_refused(self, pattern, harmless):
        key = pattern.replace("*", "x")
        model = read_model(LLAMA)
        known = key in ("rope_scaling", "rope_parameters", "partial_rotary_factor", "hidden_act")
        for value in (None, *harmless):
            assert read_model(LLAMA | {key: value}) == model
        if not known:
            with pytest.raises(ConfigError, match=f"{key} is 7.5; model_type 'llama' is implemented without it"):
                read_model(LLAMA | {key: 7.5})

    def test_what_does_not_touch_numbers_is_let_be(self):
        noise = {
            "_name_or_path": "x", "transformers_version": "5.23.0", "use_cache": True, "bos_token_id": 1,
            "eos_token_id": [2, 3],
            "attention_dropout": 0.5, "initializer_range": 0.02, "auto_map": {"AutoModel": "m--n.Evil"}, "pretraining_tp": 2,
            "task_specific_params": {"text-generation": {"max_length": 50}}, "id2label": {"0": "LABEL_0"},
            "max_window_layers": 2,
            "layer_types": ["full_attention"] * 3,
        }  # fmt: skip
        assert read_model(LLAMA | noise) == read_model(LLAMA)

    def test_nothing_is_changed_in_the_callers_config(self):
        for config in FAMILIES.values():
            before = copy.deepcopy(config)
            read_model(config)
            assert config == before


class TestQuantization:
    @pytest.mark.parametrize(
        ("quantization", "form"),
        [
            (GPTQ4, GPTQ(4, 128)),
            (GPTQ4 | {"bits": 8, "desc_act": True}, GPTQ(8, 128, permuted=True)),
            (AWQ4, AWQ(4, 64)),
            (FP8, FP8Block(128, 128)),
        ],
    )
    def test_layers_are_quantised_and_the_head_is_not(self, quantization, form):
        model = quantized(quantization)
        assert {node.format for node in linears(model).values()} == {form}
        assert model.head.linear.format == Dense()
        assert parameters(model) == parameters(read_model(LLAMA))
        assert parameters(model) == sum(w.elements for w in model_weights(model) if not w.companion)

    @pytest.mark.parametrize("quantization", [GPTQ4, AWQ4, FP8])
    @pytest.mark.parametrize("degree", [1, 2, 3, 4])
    def test_a_cut_of_an_mlp_never_divides_a_group_and_a_head_never_a_word(self, quantization, degree):
        model = quantized(quantization)
        layout = Layout(model, Mesh(tp=degree), Shares.even(degree), "bfloat16", "bfloat16")
        for linear in linears(model).values():
            for axis, side in ((linear.out, "out"), (linear.inp, "in")):
                if axis.cut is None:
                    continue
                whole = linear.format.pack(side) if axis.cut != "mlp" else linear.format.group(side)
                assert axis.cut != "mlp" or axis.grain % math.lcm(linear.format.pack(side), whole) == 0
                assert all(part.start % whole == 0 for part in layout.spans(axis))

    def test_bytes_of_a_gptq_layer(self):
        """7 linears of 4 bits, with a scale of 16 bits and a zero of 4 for each 128 inputs, and an int32 an input."""
        model = quantized(GPTQ4)
        layout = Layout(model, Mesh(), Shares.even(1), "float16", "float16")
        shapes = [(256, 256), (128, 256), (128, 256), (256, 256), (640, 256), (640, 256), (256, 640)]
        layer = sum(out * inp // 2 + (inp // 128) * (out * 2 + out // 2) + inp * 4 for out, inp in shapes) + 2 * 256 * 2
        assert layout.weight_bytes(0) == 3 * layer + 2 * 512 * 256 * 2 + 256 * 2

    @pytest.mark.parametrize("key", ["modules_to_not_convert", "ignored_layers"])
    def test_named_modules_stay_dense(self, key):
        names = ["lm_head", "model.layers.1.mlp", "k_proj", "proj", "model.layers.2.self_attn.q_pro"]
        model = quantized(FP8 | {key: names})
        dense = {path for path, node in linears(model).items() if node.format == Dense()}
        expected = {f"model.layers.{i}.self_attn.k_proj" for i in range(3)}
        assert dense == expected | {f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")}
        assert [(run.start, run.count) for run in model.runs] == [(0, 1), (1, 1), (2, 1)]
        assert model.runs[0].block is model.runs[2].block

    def test_a_name_of_nothing_leaves_one_run(self):
        assert len(quantized(FP8 | {"modules_to_not_convert": ["lm_head"]}).runs) == 1

    def test_fused_linears_are_named_as_they_are_stored(self):
        model = read_model(
            FAMILIES["phi3"] | {"quantization_config": FP8 | {"modules_to_not_convert": ["model.layers.0.self_attn.qkv_proj"]}}
        )
        dense = {path for path, node in linears(model).items() if node.format == Dense()}
        assert dense == {f"model.layers.0.self_attn.{name}_proj" for name in "qkv"}

    @pytest.mark.parametrize("quantization", [GPTQ4, AWQ4, GPTQ4 | {"bits": 2}])
    def test_a_word_that_does_not_divide_a_head_is_refused(self, quantization):
        with pytest.raises(ConfigError, match="does not divide heads of 36; dense weights would work"):
            quantized(quantization, head_dim=36)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"quant_method": "bitsandbytes"}, "'bitsandbytes' is not known"),
            ({"quant_method": None}, "quant_method is None"),
            pytest.param({"quant_method": 10**5000}, "quant_method is a value of int, too long", id="huge"),
            ({"bits": 3}, "bits is 3"),
            ({"bits": 4.0}, "bits is 4.0"),
            ({"bits": True}, "bits is True"),
            ({"group_size": -1}, "group_size is -1"),
            ({"group_size": None}, "group_size is None"),
            ({"desc_act": "yes"}, "desc_act is 'yes'"),
            ({"lm_head": True}, "lm_head is True"),
            ({"dynamic": {"-:.*down.*": {}}}, "dynamic is"),
            ({"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
            ({"modules_to_not_convert": "lm_head"}, "modules_to_not_convert is 'lm_head'"),
        ],
    )
    def test_unknown_variants_are_refused_by_name(self, change, message):
        with pytest.raises(ConfigError, match=message):
            quantized(GPTQ4 | change)

    @pytest.mark.parametrize(
        "change",
        [
            {"activation_scheme": "static"},
            {"weight_block_size": None},
            {"weight_block_size": [128]},
            {"weight_block_size": [True, 128]},
            {"fmt": "e5m2"},
            {"scale_fmt": "ue8m0"},
        ],
    )
    def test_unknown_fp8_is_refused_by_name(self, change):
        with pytest.raises(ConfigError, match=next(iter(change))):
            quantized(FP8 | change)

    def test_awq_of_another_layout_is_refused(self):
        for change in ({"version": "gemv"}, {"zero_point": False}):
            with pytest.raises(ConfigError, match=f"quantization_config.{next(iter(change))} is"):
                quantized(AWQ4 | change)

    def test_transposed_weights_are_refused(self):
        with pytest.raises(ConfigError, match="not implemented for weights stored transposed, as 'q' is"):
            read_model(GPT2 | {"quantization_config": GPTQ4})

    def test_fused_weights_that_share_a_scale_are_refused(self):
        narrow = FAMILIES["phi3"] | {"head_dim": 32, "rope_scaling": None, "quantization_config": FP8}
        with pytest.raises(ConfigError, match="'k_proj' does not start and end on a multiple of that in 'qkv_proj'"):
            read_model(narrow)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 300)
    | st.integers()
    | st.sampled_from([2**31, 2**63, -(2**63), 10**400, -(10**400), 0.0, 1.0, -1.0, 0.5, 1e300, 5e-324])
    | st.floats()
    | st.sampled_from(
        [*KINDS, *MODELS, "silu", "gelu", "float16", "auto", "full_attention", "sliding_attention", "gptq", "awq", "fp8"]
    )
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
SECTION_KEYS = st.sampled_from([*KEYS, "mrope_section", "full_attention"])
QUANTIZATION_KEYS = st.sampled_from(
    ["quant_method", "bits", "w_bit", "group_size", "q_group_size", "desc_act", "weight_block_size", "modules_to_not_convert",
     "ignored_layers", *(pattern for pattern, _ in NEUTRAL_QUANTIZATION)]
)  # fmt: skip
OTHER_KEYS = [
    "text_config", "quantization_config", "rope_parameters", "original_max_position_embeddings", "dtype",
    *(pattern.replace("*", "x") for pattern, _ in NEUTRAL),
]  # fmt: skip
FUZZ = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def settle(config):
    """Reads the config; anything but a model or a ConfigError is a failure. Whatever is accepted can be counted."""
    try:
        model = read_model(config)
    except ConfigError as error:
        assert len(str(error)) < 2000
        return
    assert isinstance(model, Model)
    assert parameters(model) > 0
    if model.layers < 100:
        assert sum(1 for _ in model_weights(model)) > 3


class TestOnlyConfigErrors:
    """Whatever stands in a config.json, the reader answers with a model or with a ConfigError."""

    @FUZZ
    @given(st.sampled_from(sorted(FAMILIES)), st.data())
    def test_a_few_keys_of_a_real_config(self, name, data):
        keys = st.sampled_from(sorted({*FAMILIES[name], *OTHER_KEYS}))
        settle(FAMILIES[name] | data.draw(st.dictionaries(keys, VALUES, min_size=1, max_size=3)))

    @pytest.mark.parametrize("name", FAMILIES)
    def test_every_key_with_every_awkward_value(self, name):
        awkward = [
            None, True, False, 0, 1, -1, 3, 2**31, 2**64, 10**5000, 0.0, 0.5, -2.5, 1e308, math.nan, math.inf, -math.inf,
            "", "x", "\ud800", [], [1], [None], ["full_attention"], {}, {"type": "yarn"}, {"a": {"b": []}}, [[]], 65536, 16384,
        ]  # fmt: skip
        # The keys that no family reads take the same way in all of them.
        for key in sorted({*FAMILIES[name], *(OTHER_KEYS if name == "llama" else ())}):
            for value in awkward:
                settle(FAMILIES[name] | {key: value})
            settle({k: v for k, v in FAMILIES[name].items() if k != key})

    @FUZZ
    @given(
        st.sampled_from([name for name in sorted(FAMILIES) if name != "gpt2"]),
        st.sampled_from(["rope_scaling", "rope_parameters"]),
        st.sampled_from(sorted(KINDS)),
        st.dictionaries(SECTION_KEYS, VALUES | st.floats(0, 100), max_size=8),
    )
    def test_rotary_sections(self, name, key, kind, section):
        settle(FAMILIES[name] | {"rope_scaling": None} | {key: {"rope_type": kind} | section})

    @FUZZ
    @given(
        st.sampled_from(sorted(FAMILIES)),
        st.sampled_from([GPTQ4, AWQ4, FP8, {}]),
        st.dictionaries(QUANTIZATION_KEYS, VALUES | st.integers(1, 256), max_size=4),
    )
    def test_quantization_sections(self, name, base, section):
        settle(FAMILIES[name] | {"quantization_config": base | section})

    @FUZZ
    @given(VALUES | st.dictionaries(st.sampled_from(sorted({*LLAMA, *GPT2, *OTHER_KEYS})), VALUES))
    def test_anything(self, config):
        settle(config)

    def test_json_of_python_with_nan_is_refused(self):
        with pytest.raises(ConfigError, match="rms_norm_eps is nan; it must be a number from 0 to 1"):
            read_model(LLAMA | json.loads('{"rms_norm_eps": NaN}'))
