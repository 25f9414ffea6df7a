"""The flags of `shardwise bench`, and what becomes of them."""

from __future__ import annotations

import argparse
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from shardwise.cli import flags
from shardwise.cli.watched import Watched
from shardwise.errors import ShardwiseError, UserError

if TYPE_CHECKING:
    from shardwise.bench.cases import Case
    from shardwise.bench.report import Report
    from shardwise.bench.throughput import Timed
    from shardwise.bench.trace import Arrival
    from shardwise.engine.setup import Options

SERVED = 2048
"""The context of a server, unless told."""

SAFE_IDS = 256
"""Ids below this are in every vocabulary: what a server's is, nobody tells."""


def parser(name: str, text: str) -> flags.Parser:
    """The flags of `shardwise bench NAME`."""
    taken = "" if name in ("limits", "comm") else "MODEL"
    made = flags.Parser(f"bench {name}", f"Measures {text}.", taken)
    ADDED[name](made)
    made.add_argument("--json", action="store_true", help="one line of JSON on standard output")
    made.add_argument("--out", type=Path, metavar="FOLDER", help="also writes JSON, Markdown and a PNG there")
    made.add_argument("--name", type=stem, default=name, metavar="NAME", help=f"with --out, what they are called ({name})")
    return made


def _limits(made: flags.Parser) -> None:
    _add(made, "-t", "--threads", type=flags.degrees, metavar="1,2", help="numbers of threads (default: 1 to all cores)")
    _add(made, "--size", type=flags.memory, default=2**30, metavar="SIZE", help="what is read at once (default: 1GiB)")
    _add(made, "--types", type=words, default=("float32", "bfloat16", "int8"), metavar="NAMES", help="of products")
    _rounds(made, 5)


def _comm(made: flags.Parser) -> None:
    _add(made, "--ranks", type=flags.degrees, default=(2,), metavar="2,4", help="how many ranks sum (default: 2)")
    _add(made, "--sizes", type=sizes, default=tuple(4**n * 2**12 for n in range(7)), metavar="4KiB,1MiB",
         help="bytes that each rank brings (default: 4KiB to 16MiB)")  # fmt: skip
    _add(made, "--backends", type=words, metavar="shm,gloo", help="shm, gloo, threads (default: all that are here)")
    _add(made, "--rounds", type=flags.count, default=300, metavar="N", help="sums of each size (default: 300)")
    _plot(made)


def _decode(made: flags.Parser) -> None:
    _model(made, several=True)
    _add(made, "--batches", type=flags.degrees, default=(1, 4, 16), metavar="1,4,16", help="sequences at once")
    _add(made, "--contexts", type=flags.degrees, default=(64,), metavar="64,4096", help="tokens before the first that counts")
    _steps(made)
    _rounds(made, 3)
    _plot(made)


def _prefill(made: flags.Parser) -> None:
    _model(made, several=True)
    _add(made, "--batches", type=flags.degrees, default=(1,), metavar="1,4", help="prompts at once")
    _add(made, "--lengths", type=flags.degrees, default=(128, 512), metavar="128,512", help="tokens of a prompt")
    _rounds(made, 3)
    _plot(made)


def _scaling(made: flags.Parser) -> None:
    _model(made, several=True)
    _add(made, "--batch", type=flags.count, default=1, metavar="N", help="sequences at once (default: 1)")
    _add(made, "--context", type=flags.count, default=64, metavar="N", help="tokens before the first that counts (default: 64)")
    _steps(made)
    _rounds(made, 3)
    _plot(made)


def _throughput(made: flags.Parser) -> None:
    from shardwise.cli.remote import add_url

    _model(made, several=False)
    _add(made, "--trace", type=Path, required=True, metavar="FILE", help="Azure's (.csv) or Mooncake's (.jsonl)")
    _add(made, "--requests", type=flags.count, default=32, metavar="N", help="the first so many (default: 32)")
    _add(made, "--speed", type=positive, default=1.0, metavar="X", help="so many times as fast (default: 1)")
    _add(made, "--length", type=positive, default=1.0, metavar="X", help="so many times as long (default: 1)")
    _add(made, "--max-model-len", type=flags.count, metavar="N",
         help="the context; longer requests are cut to it (default: the model's; 2048 for a server)")  # fmt: skip
    _add(made, "--max-num-seqs", type=flags.count, default=32, metavar="N", help="sequences that run at once (default: 32)")
    _add(made, "--served-model", metavar="NAME", help="which of the server's models (default: its first)")
    add_url(made, None)


def _peers(made: flags.Parser) -> None:
    _add(made, "model", nargs="?", metavar="MODEL", type=Path,
         help="a folder with a checkpoint (default: a Llama of 1.04 B parameters with random weights)")  # fmt: skip
    _add(made, "--folder", type=Path, default=Path("bench-peers"), metavar="FOLDER",
         help="environments and weights of others: made there, and kept (default: bench-peers)")  # fmt: skip
    _add(made, "--peers", type=words, default=("llama.cpp", "transformers", "transformers-tp", "vllm"), metavar="NAMES",
         help="llama.cpp, transformers, transformers-tp, vllm, vllm-tp (default: all but the last)")  # fmt: skip
    _add(made, "--install", action="store_true", help="makes the environments that are missing, by pip")
    _add(made, "--with", dest="interpreters", action="append", type=named, default=[], metavar="NAME=PYTHON",
         help="the interpreter of a peer that is installed; may be given several times")  # fmt: skip
    _add(made, "--formats", type=words, default=("bf16", "int8", "int4"), metavar="NAMES",
         help="bf16, int8, int4, int4:128 (default: the first three)")  # fmt: skip
    _add(made, "--batches", type=flags.degrees, default=(1, 4, 16), metavar="1,4,16", help="sequences at once")
    _add(made, "--context", type=flags.count, default=64, metavar="N", help="tokens before the first that counts (default: 64)")
    _add(made, "--prompt", type=flags.count, default=512, metavar="N", help="tokens of the prompt that is read (default: 512)")
    _add(made, "-tp", "--tensor-parallel-size", dest="tp", type=flags.count, metavar="N", help="ranks of those that cut")
    _add(made, "-t", "--threads", type=flags.count, metavar="N", help="threads of each engine, all together (default: all)")
    _add(made, "--patience", type=positive, default=600.0, metavar="S", help="seconds for an answer, or a start (default: 600)")
    _steps(made)
    _rounds(made, 5)


ADDED: dict[str, Callable[[flags.Parser], None]] = {
    "limits": _limits, "comm": _comm, "decode": _decode, "prefill": _prefill, "scaling": _scaling, "throughput": _throughput,
    "peers": _peers,
}  # fmt: skip


def _model(made: flags.Parser, *, several: bool) -> None:
    _add(made, "model", nargs="?", metavar="MODEL",
         help="a folder or org/name (default: a Llama of 1.04 B parameters with random weights)")  # fmt: skip
    _add(made, "-tp", "--tensor-parallel-size", dest="tp", type=flags.degrees, metavar="1,2" if several else "N", help="ranks")
    _add(made, "--dtype", type=words, default=("auto",), metavar="NAMES", help="auto, bfloat16, float32, float16")
    _add(made, "-q", "--quantization", type=words, default=("none",), metavar="none,int8", help="none, int8, int4, int4:128")
    _add(made, "-t", "--threads", type=flags.count, metavar="N", help="threads a rank (default: all, shared equally)")
    _add(made, "--load-format", metavar="FORMAT", help="auto, or dummy for random weights (default: auto for a MODEL)")


def _steps(made: flags.Parser) -> None:
    _add(made, "--steps", type=flags.count, default=24, metavar="N", help="decoded steps of each round (default: 24)")


def _rounds(made: flags.Parser, usual: int) -> None:
    _add(made, "--rounds", type=flags.count, default=usual, metavar="N", help=f"all take turns so often (default: {usual})")


def _plot(made: flags.Parser) -> None:
    _add(made, "--plot", type=Path, metavar="FILE.png", help="also draws it")


_add = argparse.ArgumentParser.add_argument


# --- what becomes of them -------------------------------------------------------------------------------------------------


@contextmanager
def model(args: argparse.Namespace) -> Iterator[Options]:
    """What is to run, but for its degree, dtype and quantisation."""
    from shardwise.bench.cases import reference_model
    from shardwise.engine.setup import Options

    if args.model is not None:
        yield Options(args.model, device="cpu", load_format=args.load_format or "auto", threads=args.threads)
        return
    if args.load_format not in (None, "dummy"):
        raise UserError(f"--load-format {args.load_format}: without MODEL there are no weights but random ones; give a MODEL")
    with reference_model() as folder:
        yield Options(str(folder), device="cpu", load_format="dummy", threads=args.threads)


def cases(args: argparse.Namespace, options: Options, warn: Callable[[str], None]) -> tuple[Case, ...]:
    """Every way to run it that the flags name."""
    from shardwise.bench.cases import cases
    from shardwise.engine.cores import crowded

    degrees = args.tp or (1, 2)
    if warning := crowded(max(degrees), args.threads or 1):
        warn(warning)
    return cases(options, degrees, tuple(map(flags.dtype, args.dtype)), args.quantization)


def only(args: argparse.Namespace, options: Options) -> Options:
    """The one way to run it that the flags name."""
    from shardwise.bench.cases import quantized

    for flag, given in (("--dtype", args.dtype), ("--quantization", args.quantization)):
        if len(given) > 1:
            raise UserError(f"{flag} {','.join(given)}: one at a time is measured here; give one of them")
    options = replace(options, dtype=flags.dtype(args.dtype[0]), tp=args.tp[0] if args.tp else 1)
    return options if args.quantization == ("none",) else quantized(options, args.quantization[0])


def of_server(args: argparse.Namespace, arrivals: Sequence[Arrival], watched: Watched) -> Report:
    """A replay against the server of --url."""
    from shardwise.bench import throughput, trace
    from shardwise.cli.remote import server

    asked = server(args.url, args.api_key)
    name = args.served_model or asked.model()
    made, cut = trace.scaled(arrivals, trace.Scale(args.requests, args.speed, args.length, args.max_model_len or SERVED))

    def answered(prompt: list[int], answer: int, timed: Timed) -> None:
        body = {"model": name, "prompt": prompt, "max_tokens": answer, "temperature": 0, "ignore_eos": True}
        body |= {"stream_options": {"include_usage": True}}
        try:
            with closing(asked.stream("completions", body)) as chunks:
                for chunk in chunks:
                    timed.tokens = (chunk.get("usage") or {}).get("completion_tokens") or timed.tokens
                    if chunk.get("choices"):
                        timed.token()
        except ShardwiseError as error:
            timed.end(str(error))
        else:
            timed.end()

    def target(prompt: list[int], answer: int, timed: Timed) -> None:
        threading.Thread(target=answered, args=(prompt, answer, timed), daemon=True).start()

    with watched(len(made)) as told:
        found = throughput.replay(made, target, SAFE_IDS, told)
    return throughput.throughput(args.trace.name, [throughput.row(asked.url, made, found)], found, cut)


# --- values ---------------------------------------------------------------------------------------------------------------


def words(text: str) -> tuple[str, ...]:
    """a,b as words, each once."""
    found = tuple(word.strip() for word in text.split(","))
    if not all(found) or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of different words, as a,b")
    return found


def named(text: str) -> tuple[str, str]:
    """NAME=PATH as a pair."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r}: give NAME=PYTHON, as llama.cpp=venv/bin/python")
    return name, path


def stem(text: str) -> str:
    """Part of a file's name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", text):
        raise argparse.ArgumentTypeError(f"{text!r}: use letters, digits, - and _")
    return text


def sizes(text: str) -> tuple[int, ...]:
    """4KiB,1MiB in bytes."""
    return tuple(flags.memory(part) for part in text.split(","))


def positive(text: str) -> float:
    """A number above 0."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is out of range; it takes more than 0")
    return number
