"""`shardwise inspect`: how a model would be cut, from its config.json alone: no weights, no devices, no torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shardwise.cli import flags
from shardwise.cli.cut import parts, totals, tree
from shardwise.engine.hub import BUNDLED, resolve_config
from shardwise.engine.setup import DTYPES
from shardwise.errors import UserError
from shardwise.spec.checkpoint import read_json
from shardwise.spec.config import read_model
from shardwise.spec.layout import Layout, Shares
from shardwise.spec.mesh import Mesh


def run(argv: Sequence[str]) -> None:
    """The command; `argv` is what follows its name."""
    parser = flags.Parser("inspect", "Shows how a model is cut over ranks. MODEL may also be a config.json alone.")
    flags.add_model(parser)
    parser.add_argument("--json", action="store_true", help="everything as one JSON object")
    args = parser.read(argv)
    dtype = flags.dtype(args.dtype)
    if dtype not in DTYPES:
        raise UserError(f"--dtype {args.dtype!r} is not known; choose one of {', '.join(DTYPES)}")
    path = resolve_config(args.model, revision=args.revision)
    model = read_model(read_json(path))
    tp = args.tp if args.tp is not None else len(args.shares or (1.0,))
    shares = Shares.of(args.shares) if args.shares else Shares.even(tp)
    dtype = model.dtype if dtype == "auto" else dtype
    layout = Layout(model, Mesh(tp=tp), shares, dtype, dtype)
    name = _name(args.model or BUNDLED, path)
    if args.json:
        sys.stdout.write(json.dumps(described(name, layout)) + "\n")
        return
    from rich.console import Console

    from shardwise.cli.draw import draw_all

    draw_all(Console(), name, layout)


def _name(model: str, path: Path) -> str:
    """What to call it: the folder, the file if it is not just config.json, or the hub id as it was given."""
    if not Path(model).exists():
        return model
    return path.resolve().parent.name if path.name == "config.json" else path.stem


def described(name: str, layout: Layout) -> dict[str, Any]:
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
        "tensor_parallel_size": layout.mesh.tp,
        "shares": list(layout.shares.attention),
        "blocks": [asdict(branch) for branch in tree(layout)],
        "ranks": [{key: plain(value) for key, value in asdict(part).items()} for part in ranks],
        "totals": asdict(totals(layout, ranks)),
    }
