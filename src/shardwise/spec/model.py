"""A whole network: an embedding, runs of equal layers, a head. What is asked of all of it is computed run by run.

Like the blocks that it is made of, it says nothing about devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from shardwise.spec.axes import Weight
from shardwise.spec.blocks import Block, Embedding, Head, Rope, attentions, weights


@dataclass(frozen=True, slots=True)
class Run:
    """`count` equal layers, the first with index `start`; layer i stands at path "`name`.i"."""

    name: str
    start: int
    count: int
    block: Block


@dataclass(frozen=True, slots=True)
class Model:
    """A whole network. `context` is the most tokens a sequence may have; `dtype` the one the checkpoint was saved in.

    `prefix`: a checkpoint may store every name below it ("transformer."). `ignored`: stored tensors that hold no parameter
    (masks, rotary tables), as suffixes. `foreign`: tensors of what is not run (a vision tower, multi-token prediction), by how
    their names begin.
    """

    architecture: str
    embed: Embedding
    runs: tuple[Run, ...]
    head: Head
    vocab: int
    hidden: int
    context: int
    dtype: str
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()

    @property
    def layers(self) -> int:
        return sum(run.count for run in self.runs)

    @property
    def heads(self) -> int:
        """The fewest query heads of any layer: the highest degree that can be cut."""
        return min(block.heads for run in self.runs for block in attentions(run.block))


def layer_blocks(model: Model) -> Iterator[tuple[str, Block]]:
    """(path, block) of every layer, in order."""
    for run in model.runs:
        for i in range(run.start, run.start + run.count):
            yield f"{run.name}.{i}", run.block


def model_weights(model: Model) -> Iterator[Weight]:
    """Every distinct weight of the model; a tied head is its table's weight and is yielded once."""
    seen: set[str] = set()
    for path, block in (("", model.embed), *layer_blocks(model), ("", model.head)):
        for weight in weights(block, path):
            if weight.name not in seen:
                seen.add(weight.name)
                yield weight


def parameters(model: Model) -> int:
    """The number of parameters, without walking equal layers twice. Packed tensors count what they stand for."""

    def count(block: Block) -> int:
        return sum(weight.elements for weight in weights(block) if not weight.companion)

    total = count(model.embed) + sum(run.count * count(run.block) for run in model.runs) + count(model.head)
    tied = model.head.linear.tied
    return total - (model.head.linear.out.size * model.head.linear.inp.size if tied else 0)


def ropes(model: Model) -> tuple[Rope, ...]:
    """The distinct rotary embeddings of the model, in order of first use."""
    found = {a.rope: None for run in model.runs for a in attentions(run.block) if a.rope}
    return tuple(found)
