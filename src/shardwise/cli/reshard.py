"""`shardwise reshard`: another number of ranks, or other shares, on a running server, which goes on serving meanwhile."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from shardwise.cli import flags
from shardwise.cli.remote import add_url, server
from shardwise.errors import UserError
from shardwise.verify.client import URL


def run(argv: Sequence[str]) -> None:
    """The command; `argv` is what follows its name."""
    parser = flags.Parser("reshard", "Cuts the model of a running `shardwise serve` anew; open requests go on.", "")
    parser.add_argument(
        "-tp", "--tensor-parallel-size", "--tp", "--tp-size", "--num-shard",
        dest="tp", type=flags.count, metavar="N", help="ranks to cut the model over",
    )  # fmt: skip
    parser.add_argument(
        "-ts", "--tensor-split", "--shares",
        dest="shares", type=flags.shares, metavar="3,1", help="proportions, one a rank (default: even)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="the server's answer as it is")
    add_url(parser, URL)
    args = parser.read(argv)
    asked = {name: value for name in ("tp", "shares") if (value := getattr(args, name)) is not None}
    if not asked:
        raise UserError("say how many ranks, as -tp 3, or the share of each, as --shares 3,1")
    told = server(args.url, args.api_key).post("admin/reshard", asked)
    if args.json:
        sys.stdout.write(json.dumps(told) + "\n")
        return
    split = ":".join(f"{share:g}" for share in told["shares"])
    ranks = f"{told['tp']} rank{'s' * (told['tp'] != 1)}"
    sys.stdout.write(
        f"{ranks} serve{'s' * (told['tp'] == 1)}{f', {split}' if len(set(told['shares'])) > 1 else ''}: requests of up to "
        f"{told['max_model_len']} tokens, {told['max_num_seqs']} at once\n"
    )
