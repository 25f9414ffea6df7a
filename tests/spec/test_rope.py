"""Rotary frequencies: the numbers of transformers, both spellings of a config, and refusals of what is unknown."""

from __future__ import annotations

import copy
import importlib
import math

import pytest

from shardwise.errors import ConfigError
from shardwise.spec.models.fields import Fields
from shardwise.spec.models.rope import KINDS, rope

CONTEXT = 4096
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0 + i / 7 for i in range(32)],
    "long_factor": [1.5 * 1.21**i for i in range(32)],
    "original_max_position_embeddings": 1024,
}
SECTIONS = (
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "linear", "factor": 3},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "truncate": False},
    {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 512, "attention_factor": 0.7},
    {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 0.707, "mscale_all_dim": 1.2},
    {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 256, "beta_fast": 64, "beta_slow": 2},
    {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8, "beta_fast": 4, "beta_slow": 3},
    {"rope_type": "yarn", "factor": 1.0, "original_max_position_embeddings": 4096},
    LONG,
    LONG | {"factor": 32.0},
    LONG | {"factor": 0.5},
    LONG | {"attention_factor": 1.25},
    LONG | {"original_max_position_embeddings": 4096},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 1024},
    {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 128},
    {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 2.5, "high_freq_factor": 2.75,
     "original_max_position_embeddings": 2048},
)  # fmt: skip


def read(dim=64, **config):
    return rope(Fields({"max_position_embeddings": CONTEXT, **config}), dim, partial=True)


def close(ours, theirs):
    return len(ours) == len(theirs) and all(abs(a - b) <= 1e-6 * abs(b) for a, b in zip(ours, theirs, strict=True))


@pytest.fixture(scope="module")
def reference(transformers):
    functions = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS
    phi3 = importlib.import_module("transformers.models.phi3.modeling_phi3")
    config_class = transformers.LlamaConfig

    def compute(dim, base, section, **arguments):
        parameters = copy.deepcopy(section) | {"rope_theta": base}
        config = config_class(
            hidden_size=4 * dim,
            num_attention_heads=4,
            head_dim=dim,
            max_position_embeddings=CONTEXT,
            rope_parameters=parameters,
        )
        function = functions.get(section["rope_type"], phi3.Phi3RotaryEmbedding.compute_default_rope_parameters)
        steps, scale = function(config, device="cpu", **arguments)
        return steps.tolist(), scale

    return compute


class TestAsTransformers:
    """Against modeling_rope_utils itself, on a grid."""

    @pytest.mark.parametrize("base", [10000.0, 500000, 1e6, 1e9])
    @pytest.mark.parametrize("section", SECTIONS, ids=lambda s: s["rope_type"])
    def test_frequencies_and_scale(self, reference, section, base):
        dims = (64,) if section["rope_type"] == "longrope" else (16, 64, 80, 128, 256)
        for dim in dims:
            found = read(dim, rope_theta=base, rope_scaling=section)
            steps, scale = reference(dim, base, section)
            assert found.dim == dim
            assert close(found.frequencies, steps)
            assert found.scale == pytest.approx(scale, rel=1e-12)

    @pytest.mark.parametrize("factor", [0.25, 0.5, 0.75])
    @pytest.mark.parametrize("section", [s for s in SECTIONS if s["rope_type"] != "longrope"], ids=lambda s: s["rope_type"])
    def test_a_part_of_the_head(self, reference, section, factor):
        found = read(64, rope_scaling=section, partial_rotary_factor=factor)
        assert found.dim == 64 * factor
        assert close(found.frequencies, reference(64, 10000.0, section | {"partial_rotary_factor": factor})[0])

    @pytest.mark.parametrize("section", [s for s in SECTIONS if s["rope_type"] == "longrope"])
    def test_the_long_set(self, reference, section):
        found = read(64, rope_scaling=section)
        before = section["original_max_position_embeddings"]
        steps, scale = reference(64, 10000.0, section, seq_len=before + 1)
        assert found.boundary == before
        assert close(found.long, steps)
        assert found.long_scale == pytest.approx(scale, rel=1e-12)

    def test_dynamic_grows_as_there(self, reference):
        section = {"rope_type": "dynamic", "factor": 2.0}
        found = read(64, rope_scaling=section)
        base, factor = found.dynamic
        grown = base * (factor * 6000 / found.boundary - (factor - 1)) ** (64 / 62)
        steps, _ = reference(64, 10000.0, section, seq_len=6000)
        assert close([grown ** (-2 * i / 64) for i in range(32)], steps)


class TestWithoutAReference:
    """What holds by arithmetic alone, so that it is tested where torch is absent."""

    def test_the_default_is_roformer(self):
        found = read(8, rope_theta=10000.0)
        assert found.frequencies == pytest.approx((1.0, 0.1, 0.01, 0.001), rel=1e-6)
        assert (found.scale, found.long, found.dynamic, found.boundary, found.halves) == (1.0, None, None, None, True)

    def test_llama3_leaves_short_waves_and_divides_long_ones(self):
        section = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        plain = read(128, rope_theta=500000.0).frequencies
        bent = read(128, rope_theta=500000.0, rope_scaling=section | {"original_max_position_embeddings": 8192}).frequencies
        for a, b in zip(plain, bent, strict=True):
            wave = 2 * math.pi / a
            if wave < 8192 / 4:
                assert b == a
            elif wave > 8192:
                assert b == pytest.approx(a / 8, rel=1e-6)
            else:
                assert a / 8 < b < a

    def test_yarn_lies_between_plain_and_interpolated(self):
        plain = read(64).frequencies
        found = read(64, rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024})
        assert found.frequencies[0] == plain[0]
        assert found.frequencies[-1] == pytest.approx(plain[-1] / 4, rel=1e-6)
        assert all(a / 4 * 0.999999 <= b <= a for a, b in zip(plain, found.frequencies, strict=True))
        assert found.scale == pytest.approx(0.1 * math.log(4) + 1)

    def test_longrope_scale_follows_the_stretch(self):
        assert read(64, rope_scaling=LONG).scale == pytest.approx(math.sqrt(1 + math.log(4) / math.log(1024)))
        assert read(64, rope_scaling=LONG | {"original_max_position_embeddings": CONTEXT}).scale == 1.0


class TestSpellings:
    @pytest.mark.parametrize("section", SECTIONS, ids=lambda s: s["rope_type"])
    def test_old_and_new_say_the_same(self, section):
        new = {"rope_parameters": section | {"rope_theta": 5e5, "partial_rotary_factor": 1.0}}
        ancient = {("type" if key == "rope_type" else key): value for key, value in section.items()}
        assert read(64, **new) == read(64, rope_theta=5e5, rope_scaling=section)
        assert read(64, **new) == read(64, rope_theta=5e5, rope_scaling=ancient)

    def test_the_section_outranks_the_top(self):
        assert read(64, rope_theta=1e6, rope_parameters={"rope_theta": 1e4}) == read(64, rope_theta=1e4)

    def test_but_the_original_context_at_the_top_outranks_the_section(self):
        # As transformers standardises it; Phi-3 keeps it at the top.
        assert read(64, original_max_position_embeddings=2048, rope_scaling=LONG).boundary == 2048

    @pytest.mark.parametrize("empty", [None, {}])
    def test_nothing_is_the_default(self, empty):
        assert read(64, rope_scaling=empty, rope_parameters=empty) == read(64)

    def test_both_alike_are_one(self):
        section = {"rope_type": "linear", "factor": 2.0}
        assert read(64, rope_scaling=section, rope_parameters=dict(section)) == read(64, rope_scaling=section)


LLAMA3 = SECTIONS[-1]


class TestRefusals:
    @pytest.mark.parametrize("kind", ["mrope", "proportional", "axial", "su", "Default", "", 3, True, ["yarn"]])
    def test_unknown_kinds_by_name(self, kind):
        with pytest.raises(ConfigError, match=r"rope_scaling\.rope_type is .*" + "known here: " + ", ".join(KINDS)):
            read(64, rope_scaling={"rope_type": kind})

    def test_unknown_keys_by_name(self):
        with pytest.raises(ConfigError, match=r"rope_parameters\.mrope_section is \[16, 24, 24\]"):
            read(64, rope_parameters={"rope_type": "default", "mrope_section": [16, 24, 24]})
        with pytest.raises(ConfigError, match=r"rope_parameters\.full_attention"):
            read(64, rope_parameters={"full_attention": {"rope_type": "default"}})

    def test_two_that_disagree(self):
        with pytest.raises(ConfigError, match=r"rope_scaling is .* rope_parameters is"):
            read(64, rope_scaling={"type": "linear", "factor": 2}, rope_parameters={"rope_theta": 2e4})

    def test_a_part_of_the_head_where_the_family_turns_all_of_it(self):
        for config in ({"partial_rotary_factor": 0.5}, {"rope_parameters": {"partial_rotary_factor": 0.5}}):
            with pytest.raises(ConfigError, match=r"partial_rotary_factor is 0\.5; .* 1\.0 works"):
                rope(Fields({"max_position_embeddings": CONTEXT, **config}), 64)

    @pytest.mark.parametrize("dim", [1, 3, 65])
    def test_an_odd_number_of_elements(self, dim):
        with pytest.raises(ConfigError, match=f"{dim} elements of a head of {dim}"):
            read(dim)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"factor": 0}, "factor is 0"),
            ({"factor": 5e-324}, "factor is 5e-324"),
            ({"factor": None}, "factor is missing"),
            ({"factor": "8"}, "factor is '8'"),
            ({"factor": True}, "factor is True"),
            ({"factor": math.nan}, "factor is nan"),
            ({"low_freq_factor": -1}, "low_freq_factor is -1"),
            ({"high_freq_factor": 2.4}, "high_freq_factor is 2.4; it must be a number from 2.5"),
            ({"high_freq_factor": math.inf}, "high_freq_factor is inf"),
            ({"original_max_position_embeddings": 8192.5}, "original_max_position_embeddings is 8192.5"),
            ({"rope_theta": 1}, "rope_theta is 1; it must be a number above 1"),
        ],
    )
    def test_values_that_cannot_be(self, change, message):
        with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
            read(64, rope_scaling=LLAMA3 | change)

    @pytest.mark.parametrize(
        "factors", [[1.0] * 31, [1.0] * 31 + [0.0], [1.0] * 31 + [math.nan], [1.0] * 31 + [5e-324], "1", [True] * 32, None]
    )
    def test_longrope_factors_that_do_not_fit(self, factors):
        with pytest.raises(ConfigError, match="long_factor"):
            read(64, rope_scaling=LONG | {"long_factor": factors})

    def test_dynamic_of_two_elements(self):
        with pytest.raises(ConfigError, match="dynamic"):
            read(2, rope_scaling={"type": "dynamic", "factor": 2.0})
