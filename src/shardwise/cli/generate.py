"""`shardwise generate`: one prompt in, its continuation out as it comes, or as one line of JSON."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from shardwise.cli import flags
from shardwise.cli.prompt import read_prompt
from shardwise.cli.start import followed, start
from shardwise.engine.complete import Piece, complete, sampling_defaults
from shardwise.engine.engine import Engine, admit
from shardwise.engine.setup import Setup, resolve
from shardwise.engine.text import Tokenizer, open_tokenizer
from shardwise.errors import RequestError
from shardwise.sched.request import SamplingParams

MAX_TOKENS = 256
"""Where --max-tokens is not given: a few paragraphs, and an end for models that never stop by themselves."""


@dataclass(frozen=True, slots=True)
class Job:
    """One request, checked, before any process has started."""

    setup: Setup
    tokenizer: Tokenizer
    prompt: Sequence[int]
    params: SamplingParams


def run(argv: Sequence[str]) -> None:
    """The command; `argv` is what follows its name."""
    begun = time.perf_counter()
    args = _parser().read(argv)
    if followed():
        return
    job = prepare(args)
    if args.show_cut:
        show_cut(job.setup)
    with start(job.setup) as engine:
        ready_s = time.perf_counter() - begun
        if args.json:
            _print_json(job, engine)
        else:
            _stream(job, engine, ready_s, args)


def _parser() -> flags.Parser:
    parser = flags.Parser("generate", "Continues a prompt on any number of ranks.")
    parser.add_argument("-p", "--prompt", metavar="TEXT", help="the prompt; - reads standard input, as does leaving it out")
    parser.add_argument("-f", "--prompt-file", "--file", dest="prompt_file", metavar="FILE", help="a UTF-8 file as the prompt")
    parser.add_argument("--chat", action="store_true", help="ask rather than continue: uses the model's chat template")
    parser.add_argument("--system", metavar="TEXT", help="with --chat, the system message")
    parser.add_argument("--json", action="store_true", help="one line of JSON on standard output, and nothing else")
    parser.add_argument("--show-cut", action="store_true", help="first draw how the model is cut, on standard error")
    flags.add_model(parser)
    flags.add_running(parser)
    flags.add_sampling(parser, f"{MAX_TOKENS}, or what the context leaves")
    parser.add_argument("--logprobs", type=int, metavar="N", help="with --json, log-probabilities: the token's and N likeliest")
    return parser


def prepare(args: argparse.Namespace) -> Job:
    """Reads and checks all that was asked for."""
    options = flags.options(args)
    # Before the model is looked up, which may be a download.
    flags.sampling(args, {})
    if args.logprobs is not None and not args.json:
        raise RequestError("--logprobs is shown in JSON only; add --json")
    if args.system is not None and not args.chat:
        raise RequestError("--system is a part of a conversation; add --chat")
    text = read_prompt(args)
    setup = resolve(options)
    params = flags.sampling(args, sampling_defaults(setup.folder))
    tokenizer = open_tokenizer(setup.folder)
    if args.chat:
        from shardwise.cli.conversation import Conversation  # jinja2, which plain prompts need not load

        conversation = Conversation(setup, tokenizer, args.system)
        prompt, _ = conversation.prompt(text)
        params = replace(params, stop=(*params.stop, *conversation.stops))
    else:
        prompt = tokenizer.encode(text)
    if args.max_tokens is None:
        room = max(1, setup.context - len(prompt))
        params = replace(params, max_tokens=max(min(MAX_TOKENS, room), params.min_tokens))
    limit = admit(setup, prompt, params)
    # One request, known in full: no more cache than it can use.
    return Job(setup.only(len(prompt) + limit), tokenizer, prompt, params)


def show_cut(setup: Setup) -> None:
    """Draws the cut on standard error."""
    from rich.console import Console

    from shardwise.cli.draw import draw_cut

    draw_cut(Console(stderr=True), setup.name, setup.layout)


# --- out ------------------------------------------------------------------------------------------------------------------


def _stream(job: Job, engine: Engine, ready_s: float, args: argparse.Namespace) -> None:
    begun = time.perf_counter()
    first_s = last_s = 0.0
    piece: Piece | None = None
    for piece in complete(engine, job.tokenizer, job.prompt, job.params):
        last_s = time.perf_counter() - begun
        first_s = first_s or last_s
        write(piece.text)
    write("\n")
    notes = []
    if args.stats and piece is not None:
        notes = [f"ready {ready_s:.1f} s", *rates(piece.usage.completion_tokens, first_s, last_s)]
    if job.params.temperature > 0 and (args.stats or args.seed is None):
        notes.append(f"seed {job.params.seed}")
    if notes:
        sys.stderr.write(", ".join(notes) + "\n")


def rates(tokens: int, first_s: float, last_s: float) -> Iterator[str]:
    """Times of one answer as people read them: until the first token, and for each further one."""
    yield f"first token {1000 * first_s:.0f} ms"
    yield f"{tokens} tokens"
    if tokens > 1 and last_s > first_s:
        each_s = (last_s - first_s) / (tokens - 1)
        yield f"{1 / each_s:.1f} tok/s"
        yield f"{1000 * each_s:.1f} ms/token"


def write(text: str) -> None:
    """Text to standard output at once. What a terminal would take for a command is not passed on to it."""
    if sys.stdout.isatty():
        text = "".join(c if c.isprintable() or c in "\n\t" or ord(c) > 0x9F else "\ufffd" for c in text)
    sys.stdout.write(text)
    sys.stdout.flush()


def _print_json(job: Job, engine: Engine) -> None:
    pieces = list(complete(engine, job.tokenizer, job.prompt, job.params))
    last = pieces[-1]
    shown = {
        "text": "".join(piece.text for piece in pieces),
        "token_ids": [piece.token for piece in pieces],
        "finish_reason": last.finish,
        "logprobs": None if job.params.logprobs is None else [_logprobs(job.tokenizer, piece) for piece in pieces],
        "usage": {
            "prompt_tokens": last.usage.prompt_tokens,
            "completion_tokens": last.usage.completion_tokens,
            "total_tokens": last.usage.total_tokens,
        },
        "seed": job.params.seed,
    }
    # ASCII: one line for every reader, whatever it takes for a line end, in every encoding.
    sys.stdout.write(json.dumps(shown) + "\n")


def _logprobs(tokenizer: Tokenizer, piece: Piece) -> dict[str, object]:
    def named(token: int, logprob: float) -> dict[str, object]:
        text = tokenizer.decode([token], skip_special_tokens=False)
        return {"token_id": token, "token": text, "logprob": logprob}

    return {**named(piece.token, piece.logprob), "top": [named(token, logprob) for token, logprob in piece.top]}
