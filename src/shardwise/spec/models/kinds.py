"""Which kind of attention each layer has, where a model has two: full, or over a sliding window."""

from __future__ import annotations

from shardwise.errors import ConfigError
from shardwise.spec.models.fields import Fields

FULL, SLIDING = "full_attention", "sliding_attention"
"""The kinds, as a config's `layer_types` spells them."""


def layer_kinds(fields: Fields, layers: int, pattern: int | None = None) -> tuple[str, ...]:
    """FULL or SLIDING for every layer, by `layer_types`. Where it is absent every `pattern`-th is full and the others slide;
    without a pattern the answer is then empty. Raises ConfigError for other kinds, or another number of them."""
    kinds = fields.names("layer_types")
    if not kinds:
        return tuple(SLIDING if (i + 1) % pattern else FULL for i in range(layers)) if pattern else ()
    if len(kinds) != layers:
        raise fields.wrong("layer_types", f"it has {len(kinds)} entries for {layers} layers")
    for i, kind in enumerate(kinds):
        if kind not in (FULL, SLIDING):
            raise ConfigError(f"config.json: layer_types[{i}] is {kind!r}; implemented are {FULL} and {SLIDING}")
    return kinds
