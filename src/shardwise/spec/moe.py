"""Mixtures of experts as blocks: a router that picks a few experts for each token, and the experts' stacked linears.

Beside `blocks`, which holds all other kinds: a router is data, so one module computes every family's rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from shardwise.spec.axes import Axis, Source, Weight
from shardwise.spec.blocks import MLP, Block, Linear, walk
from shardwise.spec.model import Model

Score = Literal["softmax", "softmax_of_top", "sigmoid"]


@dataclass(frozen=True, slots=True)
class Groups:
    """Only experts of the `top` best of `count` equal groups may be chosen. A group is as good as its best expert ("max",
    DeepSeek-V2's group_limited_greedy) or as the sum of its best two ("top2", DeepSeek-V3's noaux_tc)."""

    count: int
    top: int
    by: Literal["max", "top2"]


@dataclass(frozen=True, slots=True)
class Router:
    """Which `top` of `experts` a token goes to, and with which weights. Never cut: every rank decides the same.

    `score`: "softmax" over all experts, "softmax_of_top" over the chosen ones alone, "sigmoid" of each for itself. Chosen are
    the highest scores, or with `correction` the highest scores + bias, while weights are the scores alone. `normed`: a token's
    weights are divided by their sum plus `floor`; they are multiplied by `scale` in the end.
    `precise`: the product with the router's weights is one of float32 numbers. `rounded`: the weights become numbers of the
    model's dtype before they multiply anything, else they stay float32. Both as transformers has it, family by family.
    `also` is another name of the stored router.
    """

    name: str
    experts: int
    hidden: int
    top: int
    score: Score
    bias: bool = False
    correction: bool = False
    groups: Groups | None = None
    normed: bool = False
    floor: float = 0.0
    scale: float = 1.0
    precise: bool = False
    rounded: bool = False
    also: str | None = None

    def children(self) -> tuple[Block, ...]:
        return ()

    def own_weights(self) -> Iterator[Weight]:
        count = Axis(self.experts)
        yield self._named("weight", (count, Axis(self.hidden)))
        if self.bias:
            yield self._named("bias", (count,))
        if self.correction:
            # Differences far below bfloat16's steps decide: checkpoints hold it in float32, and so does a rank.
            yield self._named("e_score_correction_bias", (count,), "float32")

    def _named(self, part: str, axes: tuple[Axis, ...], dtype: str | None = None) -> Weight:
        also = Source(f"{self.also}.{part}") if self.also else None
        return Weight(f"{self.name}.{part}", axes, dtype, also=also)


@dataclass(frozen=True, slots=True)
class ClampedSwiglu:
    """(up + 1) · gate · sigmoid(`alpha` · gate), with gate at most `limit` and up within ± `limit`: gpt-oss."""

    alpha: float
    limit: float


@dataclass(frozen=True, slots=True)
class MoE:
    """The sum over a token's experts of weight · down(act(gate(x)) · up(x)), plus what all tokens share.

    `gate`, `up` and `down` are stacks (`Linear.experts`), `down` and that of `shared` are `partial`. `weighs_inputs`: the
    weight multiplies the expert's input (Llama 4). `shared` is an expert that every token visits, times
    sigmoid(`shared_gate`(x)) where there is one (Qwen2-MoE).
    All parts are summed at once: one reduction, whatever is cut.
    """

    name: str
    router: Router
    gate: Linear
    up: Linear
    down: Linear
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] | ClampedSwiglu
    shared: MLP | None = None
    shared_gate: Linear | None = None
    weighs_inputs: bool = False

    def summed(self, cut: Callable[[Axis], bool]) -> bool:
        """Whether ranks hold parts of the whole sum, by a layout's `cut`."""
        axes = (self.down.experts, self.down.inp, self.shared.down.inp if self.shared else None)
        return any(axis is not None and cut(axis) for axis in axes)

    @property
    def wide(self) -> bool:
        """Whether the sum over experts and ranks is taken in float64, as of a linear."""
        return self.down.wide or (self.shared is not None and self.shared.down.wide)

    def children(self) -> tuple[Block, ...]:
        parts = (self.router, self.gate, self.up, self.down, self.shared, self.shared_gate)
        return tuple(part for part in parts if part)

    def own_weights(self) -> Iterator[Weight]:
        return iter(())


def stacks(model: Model) -> Iterator[Linear]:
    """Every distinct stack of experts' linears; none in a dense model."""
    nodes = (node for run in model.runs for _, node in walk(run.block))
    return (node for node in nodes if isinstance(node, Linear) and node.experts)
