"""`shardwise generate`: one prompt in, its continuation out as it comes, or as one line of JSON; or a file of requests."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from shardwise.cli import flags
from shardwise.cli.prompt import read_prompt
from shardwise.cli.show import rates, show_cut, shown_logprobs, write
from shardwise.cli.start import followed, start
from shardwise.engine.admit import admit
from shardwise.engine.complete import Prompt
from shardwise.engine.front import Front, sampling_defaults
from shardwise.engine.setup import Setup, resolve
from shardwise.engine.text import Tokenizer, open_tokenizer
from shardwise.errors import RequestError
from shardwise.sched.request import SamplingParams


@dataclass(frozen=True, slots=True)
class Job:
    """One request, checked, before any process has started."""

    setup: Setup
    tokenizer: Tokenizer
    prompt: Prompt
    params: SamplingParams


def run(argv: Sequence[str]) -> None:
    """The command; `argv` is what follows its name."""
    begun = time.perf_counter()
    args = _parser().read(argv)
    if followed():
        return None
    if args.input is not None:
        from shardwise.cli import batch

        return batch.run(args)
    job = prepare(args)
    if args.show_cut:
        show_cut(job.setup)
    with start(job.setup) as engine:
        ready_s = time.perf_counter() - begun
        front = Front(engine, job.tokenizer)
        if args.json:
            _print_json(job, front)
        else:
            _stream(job, front, ready_s, args)
    return None


def _parser() -> flags.Parser:
    parser = flags.Parser("generate", "Continues a prompt on any number of ranks.")
    parser.add_argument("-p", "--prompt", metavar="TEXT", help="the prompt; - reads standard input, as does leaving it out")
    parser.add_argument("-f", "--prompt-file", "--file", dest="prompt_file", metavar="FILE", help="a UTF-8 file as the prompt")
    parser.add_argument("--chat", action="store_true", help="ask rather than continue: uses the model's chat template")
    parser.add_argument("--system", metavar="TEXT", help="with --chat, the system message")
    parser.add_argument("--json", action="store_true", help="one line of JSON on standard output, and nothing else")
    many = parser.add_argument_group("many requests")
    many.add_argument(
        "--input",
        metavar="FILE",
        help='a JSON object a line with "prompt", "prompt_token_ids" or "messages"; - reads standard input',
    )
    many.add_argument(
        "--output", metavar="FILE", help="a new file for their answers, a line each as they end; - writes them out"
    )
    many.add_argument("--resume", action="store_true", help="go on with an output file that is not complete")
    parser.add_argument("--show-cut", action="store_true", help="first draw how the model is cut, on standard error")
    flags.add_model(parser)
    flags.add_running(parser)
    flags.add_sampling(parser, f"{flags.MAX_TOKENS}, or what the context leaves")
    parser.add_argument("--logprobs", type=int, metavar="N", help="with --json, log-probabilities: the token's and N likeliest")
    return parser


def prepare(args: argparse.Namespace) -> Job:
    """Reads and checks all that was asked for."""
    options = flags.options(args)
    # Before the model is looked up, which may be a download.
    flags.sampling(args, {})
    if args.logprobs is not None and not args.json:
        raise RequestError("--logprobs is shown in JSON only; add --json")
    if args.output is not None or args.resume:
        raise RequestError(f"{'--resume' if args.resume else '--output'} is for requests from a file; add --input FILE")
    if args.system is not None and not args.chat:
        raise RequestError("--system is a part of a conversation; add --chat")
    text = read_prompt(args)
    setup = resolve(options)
    params = flags.sampling(args, sampling_defaults(setup.folder))
    tokenizer = open_tokenizer(setup.folder)
    if args.chat:
        from shardwise.cli.conversation import Conversation  # jinja2, which plain prompts need not load

        conversation = Conversation(setup, tokenizer, args.system)
        prompt = tuple(conversation.prompt(text)[0])
        params = replace(params, stop=(*params.stop, *conversation.stops))
    else:
        prompt = tuple(tokenizer.encode(text))
    if args.max_tokens is None:
        room = max(1, setup.context - len(prompt))
        params = replace(params, max_tokens=max(min(flags.MAX_TOKENS, room), params.min_tokens))
    limit = admit(setup, prompt, params)
    # One request, known in full: no more cache than it can use.
    return Job(setup.only(len(prompt) + limit), tokenizer, Prompt(text, prompt), params)


# --- out ------------------------------------------------------------------------------------------------------------------


def _stream(job: Job, front: Front, ready_s: float, args: argparse.Namespace) -> None:
    begun = time.perf_counter()
    first_s = last_s = 0.0
    tokens = 0
    for output in front.stream(job.prompt, job.params):
        [new] = output.outputs
        if new.token_ids:
            tokens += len(new.token_ids)
            last_s = time.perf_counter() - begun
            first_s = first_s or last_s
        write(new.text)
    write("\n")
    notes = []
    if args.stats:
        notes = [f"ready {ready_s:.1f} s", *rates(tokens, first_s, last_s)]
    if job.params.temperature > 0 and (args.stats or args.seed is None):
        notes.append(f"seed {job.params.seed}")
    if notes:
        sys.stderr.write(", ".join(notes) + "\n")


def _print_json(job: Job, front: Front) -> None:
    whole = [output.outputs[0] for output in front.stream(job.prompt, job.params)]
    ids = [token for part in whole for token in part.token_ids]
    logprobs = [place for part in whole for place in part.logprobs or ()]
    shown = {
        "text": "".join(part.text for part in whole),
        "token_ids": ids,
        "finish_reason": whole[-1].finish_reason,
        "logprobs": None if job.params.logprobs is None else [shown_logprobs(p, job.params.logprobs) for p in logprobs],
        "usage": {
            "prompt_tokens": len(job.prompt.ids),
            "completion_tokens": len(ids),
            "total_tokens": len(job.prompt.ids) + len(ids),
        },
        "seed": job.params.seed,
    }
    # ASCII: one line for every reader, whatever it takes for a line end, in every encoding.
    sys.stdout.write(json.dumps(shown) + "\n")
