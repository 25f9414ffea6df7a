"""`shardwise inspect`: how a model would be cut, from its config.json alone: no weights, no devices, no torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from shardwise.cli import flags
from shardwise.cli.cut import parts, totals, tree
from shardwise.engine.hub import BUNDLED, model_name, resolve_config
from shardwise.engine.setup import Options, layout_of, quantization_of
from shardwise.spec.checkpoint import read_json
from shardwise.spec.config import read_model
from shardwise.spec.formats import Grouped
from shardwise.spec.layout import Layout
from shardwise.spec.requantised import left_dense


def run(argv: Sequence[str]) -> None:
    """The command; `argv` is what follows its name."""
    parser = flags.Parser("inspect", "Shows how a model is cut over ranks. MODEL may also be a config.json alone.")
    flags.add_model(parser)
    parser.add_argument("--json", action="store_true", help="everything as one JSON object")
    args = parser.read(argv)
    options = Options(
        args.model or BUNDLED,
        args.tp,
        args.shares,
        flags.dtype(args.dtype),
        expert_parallel=args.expert_parallel,
        quantization=args.quantization,
        quantization_group=args.quantization_group_size,
        kv_cache_dtype=flags.dtype(args.kv_cache_dtype),
    )
    path = resolve_config(options.model, revision=args.revision)
    layout = layout_of(options, read_model(read_json(path)))
    name = model_name(options.model, path)
    if args.json:
        sys.stdout.write(json.dumps(described(name, layout, quantization_of(options))) + "\n")
        return
    from rich.console import Console

    from shardwise.cli.draw import draw_all

    draw_all(Console(), name, layout)


def described(name: str, layout: Layout, asked: Grouped | None) -> dict[str, Any]:
    """The same as the drawing, for programs. Ranges are [first, one past the last], sizes are bytes."""
    ranks = parts(layout)

    def plain(value: Any) -> Any:
        if isinstance(value, range):
            return [value.start, value.stop]
        return value

    return {
        "model": name,
        "architecture": layout.model.architecture,
        "layers": layout.model.layers,
        "context": layout.model.context,
        "dtype": layout.dtype,
        "quantization": asdict(asked) if asked else None,
        "left_dense": list(left_dense(layout.model)) if asked else [],
        "tensor_parallel_size": layout.mesh.tp,
        "shares": list(layout.shares.attention),
        "expert_parallel": layout.expert_parallel,
        "blocks": [asdict(branch) for branch in tree(layout)],
        "ranks": [{key: plain(value) for key, value in asdict(part).items()} for part in ranks],
        "totals": asdict(totals(layout, ranks)),
    }
