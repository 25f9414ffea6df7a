"""What is measured with which model: a case is one way to run it, and all cases take turns, so that a drift of the machine's
speed touches them alike. Knows engines, not what is measured."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from shardwise.bench.limits import SHARE_BYTES, stream
from shardwise.engine.engine import Engine
from shardwise.engine.setup import Options, Setup, resolve
from shardwise.errors import UserError
from shardwise.spec.blocks import weights
from shardwise.spec.model import Model, parameters

QUANTIZATIONS = ("none", "int8", "int4")


@dataclass(frozen=True, slots=True)
class Case:
    """One way to run a model."""

    options: Options

    def told(self, setup: Setup) -> dict[str, Any]:
        """What a row says of it; `setup` is what it was resolved to."""
        return {
            "tp": self.options.tp, "dtype": setup.layout.dtype, "quantization": quantization(self.options),
            "threads": setup.threads,
        }  # fmt: skip

    @property
    def name(self) -> str:
        kind = quantization(self.options) or self.options.dtype
        return f"tp {self.options.tp}, {kind}"

    @contextmanager
    def engine(self, context: int | None, sequences: int) -> Iterator[Engine]:
        """The model loaded, with room for so many sequences of `context` tokens (None: the model's), no prefix shared."""
        asked = replace(self.options, max_model_len=context, max_num_seqs=sequences, enable_prefix_caching=False)
        with Engine(resolve(asked)) as engine:
            yield engine


def cases(options: Options, degrees: Sequence[int], dtypes: Sequence[str], quantizations: Sequence[str]) -> tuple[Case, ...]:
    """Every combination; quantised weights once, for they have no dtype. UserError where a word is not known."""
    kinds = [replace(options, dtype=dtype) for dtype in dtypes] if "none" in quantizations else []
    kinds += [quantized(options, word) for word in quantizations if word != "none"]
    return tuple(Case(replace(kind, tp=tp)) for kind in kinds for tp in degrees)


def quantized(options: Options, word: str) -> Options:
    """The same with weights in `word`: int8, int4, or int4:128 with groups of 128."""
    kind, _, group = word.partition(":")
    if kind not in QUANTIZATIONS[1:] or (group and not group.isdigit()):
        raise UserError(f"--quantization {word}: give {', '.join(QUANTIZATIONS)}, or one with its group, as int4:128")
    return replace(options, quantization=kind, quantization_group=int(group) if group else None)


def quantization(options: Options) -> str | None:
    """In what the weights are, where that is not their dtype."""
    kind, group = options.quantization, options.quantization_group
    return f"{kind}:{group}" if kind and group else kind


@contextmanager
def reference_model() -> Iterator[Path]:
    """A folder with the config of a Llama of 1.04 B parameters and nothing else: what is measured unless a model is named."""
    with tempfile.TemporaryDirectory(prefix="shardwise-bench-") as name:
        config = files("shardwise").joinpath("data/bench/llama-1b.json").read_bytes()
        folder = Path(name) / "llama-1b"  # what reports call the model
        folder.mkdir()
        (folder / "config.json").write_bytes(config)
        yield folder


def stream_limit(setup: Setup) -> float:
    """GB/s that as many threads as the ranks have together read here and now."""
    return max(stream(setup.threads * setup.layout.mesh.size, SHARE_BYTES))


def step_bytes(setup: Setup, batch: int, context: int) -> int:
    """Bytes that all ranks read for a step of `batch` tokens: each weight once, but for a table that is only looked up in, and
    the keys and values of `context` tokens of each."""
    layout = setup.layout
    looked_up = _looked_up(layout.model)
    found = 0
    for rank in range(layout.mesh.size):
        held = sum(part.bytes for part in layout.slices(rank) if part.weight.name not in looked_up)
        found += held + batch * context * layout.kv_bytes_per_token(rank)
    return found


def bits_a_weight(setup: Setup) -> float:
    """Bits of a parameter, as it is held, on average."""
    layout = setup.layout
    whole = replace(layout, mesh=replace(layout.mesh, tp=1), shares=type(layout.shares).even(1))
    return 8 * whole.weight_bytes(0) / parameters(layout.model)


def _looked_up(model: Model) -> frozenset[str]:
    tied = model.head.linear.tied
    return frozenset(weight.name for weight in weights(model.embed) if weight.name != tied)
