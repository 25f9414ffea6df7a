"""What fewer bits cost: perplexity, logits and greedy tokens of quantised weights, beside those of the same weights as stored.

    python bench/accuracy.py [--data FOLDER] [--tokens 20000] [--formats int8,int4:32] [--large] [--json FILE]

FOLDER (default: $SHARDWISE_TEST_DATA) has weights/TinyStories-656K and text/. Stories are scored one by one, each after a BOS
and cut at the context; the bundled model on the ends of three books, which it was not trained on, in pieces of 256 tokens.
The error of logits is |quantised - dense| / |dense|, root mean squares over rows whose mean was taken off: what a softmax sees.
Greedy tokens are compared along the dense model's own. `--large`: logits of a Llama of 1.04 B random weights as well.
Bits are those of all weights together, norms and what stays dense included.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from shardwise.bench.about import commit, machine
from shardwise.engine.setup import Options, Setup, resolve
from shardwise.engine.text import Tokenizer, open_tokenizer
from shardwise.engine.thread_ranks import ThreadRanks
from shardwise.sched.scheduler import Scheduler
from shardwise.sched.sequence import Request
from shardwise.sched.step import Chosen, Result
from shardwise.spec.model import parameters
from shardwise.verify.drive import traced
from shardwise.verify.trace import Text

HERE = Path(__file__).parent
FORMATS = "int8:64,int8:32,int8:128,int4:32,int4:64,int4:128"
BOOKS = ("alice-11", "pride-and-prejudice-1342", "war-and-peace")
END = "<|endoftext|>"
PIECE = 256
KEPT_ROWS = 4096
GREEDY = (8, 125)
"""Prompts, and tokens after each: 1 000 in all."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model and what it is scored on. `prompts` begin the greedy texts; without any there is only an error of logits."""

    name: str
    options: Options
    texts: list[list[int]]
    prompts: list[list[int]]


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one format. `more` is the perplexity over the dense one's, less one; `error` that of logits; `greedy` the part of
    tokens that are the same."""

    format: str
    bits: float
    perplexity: float
    more: float
    error: float
    greedy: float | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("SHARDWISE_TEST_DATA"))
    parser.add_argument("--tokens", type=int, default=20000, help="scored of each model, at most")
    parser.add_argument("--formats", default=FORMATS)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result: dict[str, object] = {"commit": commit(), "machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        subjects = [*trained(Path(args.data), args.tokens), *([large(Path(folder))] if args.large else [])]
        for subject in subjects:
            print(f"{subject.name}: {sum(map(len, subject.texts))} tokens in {len(subject.texts)} texts")
            found = []
            for figures in compared(subject, args.formats.split(",")):
                found.append(asdict(figures))
                greedy = "" if figures.greedy is None else f"  greedy {100 * figures.greedy:.1f} %"
                print(
                    f"  {figures.format:9} {figures.bits:5.2f} bits  perplexity {figures.perplexity:.4f} "
                    f"({100 * figures.more:+.2f} %)  logits off by {100 * figures.error:.2f} %{greedy}",
                    flush=True,
                )
            result[subject.name] = {"tokens": sum(map(len, subject.texts)), "formats": found}
            if args.json:
                args.json.write_text(json.dumps(result, indent=2) + "\n")


# --- what is scored -------------------------------------------------------------------------------------------------------


def trained(data: Path, tokens: int) -> Iterator[Subject]:
    """The two models that learned something."""
    folder = data / "weights" / "TinyStories-656K"
    tokenizer = open_tokenizer(folder)
    stories = [text.strip() for text in (data / "text" / "tinystories-exl2.txt").read_text(encoding="utf-8").split(END)]
    texts = [[1, *plain(tokenizer, story)][:512] for story in stories if story]
    yield Subject("TinyStories-656K", Options(str(folder), device="cpu"), bounded(texts, tokens), [t[:16] for t in texts[:8]])
    bundled = Options("shardling", device="cpu")
    tokenizer = open_tokenizer(resolve(bundled).folder)
    pieces = []
    for name in BOOKS:
        book = (data / "text" / f"{name}.txt").read_text(encoding="utf-8")
        book = book.partition("*** END OF")[0]
        ids = plain(tokenizer, " ".join(book[-len(book) // 50 :].split()))
        pieces += [[0, *ids[start : start + PIECE - 1]] for start in range(0, len(ids), PIECE - 1)]
    yield Subject("shardling", bundled, bounded(pieces, tokens), [piece[:32] for piece in pieces[:8]])


def large(folder: Path) -> Subject:
    """Random weights of a common shape: no text means anything to them."""
    shutil.copy(HERE / "models" / "llama-1b.json", folder / "config.json")
    chance = np.random.default_rng(0)
    texts = [chance.integers(0, 32000, 64).tolist() for _ in range(2)]
    return Subject("Llama of 1.04 B random weights", Options(str(folder), device="cpu", load_format="dummy"), texts, [])


def plain(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def bounded(texts: list[list[int]], tokens: int) -> list[list[int]]:
    """So many of them, spread evenly, that they have about `tokens` tokens at most."""
    every = max(1, math.ceil(sum(map(len, texts)) / tokens))
    return texts[::every]


# --- scoring --------------------------------------------------------------------------------------------------------------


def compared(subject: Subject, formats: Sequence[str]) -> Iterator[Figures]:
    """The dense model's figures, then those of each format."""
    setup = opened(subject, None)
    prompts = [Text(str(n), tuple(ids)) for n, ids in enumerate(subject.prompts[: GREEDY[0]])]
    with closing(ThreadRanks(setup)) as ranks:
        nats, dense = scored(ranks, setup, subject.texts)
        theirs = traced(ranks, setup, prompts, GREEDY[1], None, 10**6, lambda _: None)
    yield Figures("dense", bits(setup), math.exp(nats), 0.0, 0.0, 1.0 if prompts else None)
    for name in formats:
        setup = opened(subject, name)
        with closing(ThreadRanks(setup)) as ranks:
            own, logits = scored(ranks, setup, subject.texts)
            traces = traced(ranks, setup, prompts, 0, theirs, 10**6, lambda _: None)
        pairs = [
            (place.best, token)
            for trace in traces
            for place, token in zip(trace.places[trace.prompt - 1 :], trace.greedy, strict=False)
        ]
        same = sum(best == token for best, token in pairs) / len(pairs) if pairs else None
        error = math.sqrt(float(np.square(logits - dense).sum() / np.square(dense).sum()))
        yield Figures(name, bits(setup), math.exp(own), math.exp(own - nats) - 1, error, same)


def bits(setup: Setup) -> float:
    """Of a weight, on average."""
    return 8 * setup.layout.weight_bytes(0) / parameters(setup.layout.model)


def opened(subject: Subject, name: str | None) -> Setup:
    kind, _, group = (name or "").partition(":")
    longest = max(map(len, [*subject.texts, *(p + [0] * GREEDY[1] for p in subject.prompts)]))
    given = asdict(subject.options) | {"max_model_len": longest, "max_num_seqs": 8}
    return resolve(Options(**given | {"quantization": kind or None, "quantization_group": int(group) if group else None}))


def scored(ranks: ThreadRanks, setup: Setup, texts: Sequence[Sequence[int]]) -> tuple[float, np.ndarray]:
    """The mean loss of each token but the first, in nats, and some rows of centred logits."""
    windows = [group.window for group in setup.layout.cache]
    scheduler = Scheduler(setup.pages, windows, setup.limits, lambda: 0.0)
    done = [0] * len(texts)
    for number, text in enumerate(texts):
        scheduler.add(Request(number, tuple(text), 0, scored=True))
    losses: list[float] = []
    kept: dict[tuple[int, int], np.ndarray] = {}
    while scheduler.requests:
        step, _ = scheduler.step()
        assert step is not None, "nothing is in flight, so that something can run"
        owners = [scheduler.owner(item.sequence) for item in step.items]
        pieces = (np.frombuffer(rows.logits, "<f4").reshape(-1, rows.vocabulary) for rows in ranks.logits(step))
        rows = itertools.chain.from_iterable(pieces)
        results = []
        for item, owner in zip(step.items, owners, strict=True):
            assert owner is not None
            number = owner[0]
            for _ in item.targets:
                row = next(rows).astype(np.float64)
                done[number] += 1
                losses.append(float(np.logaddexp.reduce(row) - row[texts[number][done[number]]]))
                if len(losses) <= KEPT_ROWS:
                    kept[number, done[number]] = (row - row.mean()).astype(np.float32)
            results.append(Result(item.sequence, (), tuple(Chosen(target) for target in item.targets)))
        scheduler.apply(step.number, results)
    return float(np.mean(losses)), np.stack([kept[place] for place in sorted(kept)])


if __name__ == "__main__":
    main()
