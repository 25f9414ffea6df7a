"""`shardwise complete`: a prompt to a running server, its continuation as it comes. (`generate` runs a model here.)"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import closing

from shardwise.cli import flags
from shardwise.cli.prompt import read_prompt
from shardwise.cli.remote import add_url, server
from shardwise.cli.show import rates, write
from shardwise.verify.client import URL


def run(argv: Sequence[str]) -> None:
    """The command; `argv` is what follows its name."""
    args = _parser().read(argv)
    flags.sampling(args, {})
    asked = server(args.url, args.api_key)
    prompt = read_prompt(args, "the argument")
    body = {
        "model": args.model or asked.model(),
        "prompt": prompt,
        "max_tokens": flags.MAX_TOKENS,
        **flags.sampling_fields(args),
        **({"stream_options": {"include_usage": True}} if args.stats else {}),
    }
    begun = time.perf_counter()
    times: list[float] = []
    tokens = 0
    with closing(asked.stream("completions", body)) as chunks:
        for chunk in chunks:
            tokens = (chunk.get("usage") or {}).get("completion_tokens") or tokens
            for choice in chunk.get("choices") or ():
                if text := choice.get("text"):
                    times.append(time.perf_counter() - begun)
                    write(text)
    write("\n")
    if args.stats and times:
        sys.stderr.write(", ".join(rates(tokens or len(times), times[0], times[-1])) + "\n")


def _parser() -> flags.Parser:
    parser = flags.Parser(
        "complete", "Continues a prompt on a running server of OpenAI's API, as `shardwise serve` is.", "PROMPT"
    )
    parser.add_argument(
        "prompt", nargs="?", metavar="PROMPT", help="the prompt; - reads standard input, as does leaving it out"
    )
    parser.add_argument("-f", "--prompt-file", "--file", dest="prompt_file", metavar="FILE", help="a UTF-8 file as the prompt")
    parser.add_argument("-m", "--model", "--model-name", dest="model", metavar="NAME",
                        help="the model's name there (default: the first that it lists)")  # fmt: skip
    parser.add_argument("--stats", "--verbose", "-v", action="store_true", help="times and rates on standard error")
    add_url(parser, URL)
    flags.add_sampling(parser, f"{flags.MAX_TOKENS}")
    return parser
