"""Rotary frequencies from a config, as numbers: every kind that transformers has for the families here.

Float32 roundings are those of transformers' modeling_rope_utils (5.x): at position 100 000 an angle moves by radians if the
last bits of a step do. This module does not know how the numbers are applied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from struct import pack, unpack

from shardwise.errors import ConfigError
from shardwise.spec.blocks import Rope
from shardwise.spec.models.fields import Fields, shown
from shardwise.spec.models.kinds import FULL, SLIDING

KINDS: Mapping[str, str] = {kind: kind for kind in ("default", "linear", "dynamic", "yarn", "longrope", "llama3")}
"""Spelling in a config to kind. A family that has fewer, or other spellings, passes its own."""

KEYS = (
    "rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "original_max_position_embeddings",
    "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "short_factor", "long_factor",
    "low_freq_factor", "high_freq_factor", "finetuned",
)  # fmt: skip
"""What may stand in the section. A kind ignores the others' keys, as transformers does; any other key is refused."""

TINY = 1e-6
"""The least factor that is understood: smaller ones are damage, and nothing below divides by zero."""


@dataclass(frozen=True, slots=True)
class _Turn:
    """What all kinds start from. `original` is the context before any stretching, `context` the one after."""

    section: Fields
    base: float
    dim: int
    context: int
    original: int


def rope(
    fields: Fields,
    dim: int,
    *,
    kinds: Mapping[str, str] = KINDS,
    partial: bool = False,
    part: float = 1.0,
    theta: float = 10000.0,
    original: int | None = None,
) -> Rope:
    """The rotary embedding of heads of `dim`, from `rope_scaling` and `rope_theta`, or from v5's `rope_parameters`.

    `partial`: the family rotates only the first `partial_rotary_factor` of a head, `part` where it is absent; elsewhere it must
    be 1. `theta` and `original` are the family's defaults for `rope_theta` and `original_max_position_embeddings`.
    Raises ConfigError for an unknown kind or key.
    """
    section, theta = stated(fields), fields.number("rope_theta", theta, above=1)
    factor = _factor(fields, section, partial, part)
    return rope_of(fields, section, dim, theta, kinds=kinds, factor=factor, original=original)


def layer_ropes(fields: Fields, dim: int, *, full: float, sliding: float, local: str | None) -> dict[str, Rope]:
    """The rotary embeddings of full and of sliding layers, by kind: v5's `rope_parameters` has a section for each.

    Before v5 `rope_scaling` was of the full layers, as `rope_theta` was; sliding ones turn as they are by the base at key
    `local`, which a family without such a key (None) has fixed. `full` and `sliding` are the bases where none is given.
    """
    old, new = fields.section("rope_scaling"), fields.section("rope_parameters")
    if old.mapping() and new.mapping():
        raise fields.wrong("rope_scaling", "and rope_parameters is there too; give the latter alone")
    theta = fields.number("rope_theta", full, above=1)
    if local is None and theta != sliding and not new.mapping():
        raise fields.wrong("rope_theta", f"sliding layers have {sliding:g} whatever it is; rope_parameters would work")
    found = {}
    for kind, section, base in (
        (FULL, new.section(FULL) if new.mapping() else old, theta),
        (SLIDING, new.section(SLIDING), fields.number(local, sliding, above=1) if local else sliding),
    ):
        _factor(fields, section, False, 1.0)
        found[kind] = rope_of(fields, section, dim, base)
    if new.unread():
        raise new.wrong(new.unread()[0][0], f"this architecture has a section for {FULL} and one for {SLIDING}")
    return found


def rope_of(
    fields: Fields,
    section: Fields,
    dim: int,
    theta: float,
    *,
    kinds: Mapping[str, str] = KINDS,
    factor: float = 1.0,
    original: int | None = None,
) -> Rope:
    """The rotary embedding that `section` describes, of the first `factor` of heads of `dim`; base `theta` unless it says."""
    for key, _ in section.unread():
        if section.has(key) and key not in KEYS:
            raise section.wrong(key, f"not a known rotary setting; known are {', '.join(KEYS)}")
    spelled = "type" if section.has("type") and not section.has("rope_type") else "rope_type"
    kind = section.choice(spelled, kinds, "default")
    base = section.number("rope_theta", theta, above=1)
    rotated = int(dim * factor)
    if rotated < 2 or rotated % 2:
        raise ConfigError(f"config.json: {rotated} elements of a head of {dim} would be rotated; it must be even, from 2")
    context = fields.integer("max_position_embeddings")
    top = fields.optional_integer("original_max_position_embeddings") or original
    before = top or section.integer("original_max_position_embeddings", context)
    return BUILDERS[kind](_Turn(section, base, rotated, context, before))


def score_scale(fields: Fields) -> float:
    """What multiplies the scale of scores where a family corrects them, and not cos and sin, for a stretched context.

    As transformers' yarn_apply_mscale (modeling_deepseek_v3): by `mscale_all_dim`, for every kind but the default one.
    """
    section = stated(fields)
    weight = section.number("mscale_all_dim", 0.0, least=0, most=1e6)
    if not weight or section.mapping().get("rope_type", section.mapping().get("type", "default")) == "default":
        return 1.0
    return _temperature(section.number("factor", least=TINY, most=1e9), weight) ** 2


def stated(fields: Fields) -> Fields:
    """The section that says how positions are scaled, under its old name or its new one; empty where there is none."""
    old, new = fields.section("rope_scaling"), fields.section("rope_parameters")
    if old.mapping() and new.mapping() and old.mapping() != new.mapping():
        raise ConfigError(
            f"config.json: rope_scaling is {shown(dict(old.mapping()))} and rope_parameters is "
            f"{shown(dict(new.mapping()))}; give one of them, or both alike"
        )
    return old if old.mapping() else new


def _factor(fields: Fields, section: Fields, partial: bool, part: float) -> float:
    outer = fields.number("partial_rotary_factor", part, above=0, most=1)
    factor = section.number("partial_rotary_factor", outer, above=0, most=1)
    if factor != 1 and not partial:
        holder = section if section.has("partial_rotary_factor") else fields
        raise holder.wrong("partial_rotary_factor", "this architecture rotates whole heads: 1.0 works")
    return factor


def _f32(value: float) -> float:
    """The nearest float32."""
    return float(unpack("f", pack("f", value))[0])


def _over(number: float, element: float) -> float:
    """number / element as torch divides a number by a tensor: by way of the reciprocal."""
    return _f32(_f32(1 / element) * _f32(number))


def _steps(turn: _Turn, stretch: tuple[float, ...] | None = None) -> tuple[float, ...]:
    """1 / (stretch · base^(2i / dim)), rounded where a float32 computation rounds."""
    base = _f32(turn.base)
    waves = [_f32(base ** _f32(2 * i / turn.dim)) for i in range(turn.dim // 2)]
    if stretch:
        waves = [_f32(_f32(s) * w) for s, w in zip(stretch, waves, strict=True)]
    return tuple(_f32(1 / wave) for wave in waves)


def _default(turn: _Turn) -> Rope:
    return Rope(turn.dim, _steps(turn))


def _linear(turn: _Turn) -> Rope:
    """Position interpolation (arXiv 2306.15595): all positions divided by the factor."""
    factor = turn.section.number("factor", least=TINY, most=1e6)
    return Rope(turn.dim, tuple(_f32(step / factor) for step in _steps(turn)))


def _dynamic(turn: _Turn) -> Rope:
    """NTK by length: nothing changes up to the model's own context."""
    factor = turn.section.number("factor", least=TINY, most=1e6)
    if turn.dim == 2:
        raise ConfigError("config.json: rope type 'dynamic' needs more than 2 rotated elements a head")
    return Rope(turn.dim, _steps(turn), dynamic=(turn.base, factor), boundary=turn.context)


def _yarn(turn: _Turn) -> Rope:
    """YaRN (arXiv 2309.00071): slow elements are interpolated, fast ones left, a ramp between."""
    section, dim = turn.section, turn.dim
    factor = section.number("factor", turn.context / turn.original, least=TINY, most=1e9)
    turns = [section.number(key, 0.0, least=0) or usual for key, usual in (("beta_fast", 32.0), ("beta_slow", 1.0))]
    low, high = (dim * math.log(turn.original / (beta * 2 * math.pi)) / (2 * math.log(turn.base)) for beta in turns)
    if section.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    steps = []
    stretched = _steps(turn, (factor,) * (dim // 2))
    for i, (fast, slow) in enumerate(zip(_steps(turn), stretched, strict=True)):
        ramp = min(max(_f32(_f32(i - _f32(low)) / _f32(high - low)), 0.0), 1.0)
        kept = _f32(1 - ramp)
        steps.append(_f32(_f32(slow * _f32(1 - kept)) + _f32(fast * kept)))
    return Rope(dim, tuple(steps), scale=_yarn_scale(section, factor))


def _yarn_scale(section: Fields, factor: float) -> float:
    given = section.optional_number("attention_factor", least=0, most=1e6)
    top = section.number("mscale", 0.0, least=0, most=1e6)
    bottom = section.number("mscale_all_dim", 0.0, least=0, most=1e6)
    if given is not None:
        return given
    return _temperature(factor, top) / _temperature(factor, bottom) if top and bottom else _temperature(factor, 1.0)


def _temperature(factor: float, weight: float) -> float:
    """YaRN's correction of cos and sin for a context stretched by `factor`."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _longrope(turn: _Turn) -> Rope:
    """LongRoPE (arXiv 2402.13753): a factor for each step, other ones beyond the original context."""
    section, half = turn.section, turn.dim // 2
    short = section.numbers("short_factor", half, least=TINY, most=1e6)
    long = section.numbers("long_factor", half, least=TINY, most=1e6)
    factor = section.number("factor", turn.context / turn.original, least=TINY, most=1e9)
    scale = section.optional_number("attention_factor", least=0, most=1e6)
    if scale is None and factor > 1 and turn.original == 1:
        raise ConfigError("config.json: longrope with original_max_position_embeddings 1 has no attention factor; give one")
    if scale is None:
        scale = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(turn.original))
    steps = _steps(turn, short), _steps(turn, long)
    return Rope(turn.dim, steps[0], scale, long=steps[1], long_scale=scale, boundary=turn.original)


def _llama3(turn: _Turn) -> Rope:
    """Llama 3.1: long waves are interpolated, short ones left, a blend between."""
    section = turn.section
    factor = section.number("factor", least=TINY, most=1e6)
    low = section.number("low_freq_factor", least=TINY, most=1e6)
    high = section.number("high_freq_factor", least=low, most=1e6)

    def bend(step: float) -> float:
        wave = _over(_f32(2 * math.pi), step)
        # Where both factors are one number, as in Llama 4, nothing is left to blend.
        if wave <= turn.original / high:
            return step
        if wave > turn.original / low:
            return _f32(step / factor)
        blend = _f32(_f32(_over(turn.original, wave) - low) / _f32(high - low))
        return _f32(_f32(_f32(_f32(1 - blend) * step) / factor) + _f32(blend * step))

    return Rope(turn.dim, tuple(bend(step) for step in _steps(turn)))


BUILDERS: Mapping[str, Callable[[_Turn], Rope]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
}
