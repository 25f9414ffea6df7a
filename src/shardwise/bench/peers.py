"""This engine beside others: the same weights, the same machine, round by round in turn, so that ratios are of pairs.

Each contestant is a process of its own with its model loaded; while one is measured this engine waits and the others are
stopped. Beside each speed stand the bits of a weight and how far its logits are from those in float32.
"""

from __future__ import annotations

import math
import os
from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shardwise.bench import environments
from shardwise.bench.cases import bits_a_weight, quantized
from shardwise.bench.chart import Chart
from shardwise.bench.contest import Contestant
from shardwise.bench.limits import stream
from shardwise.bench.progress import Told, untold
from shardwise.bench.report import Column, Report
from shardwise.bench.speed import WARM, spread
from shardwise.engine.setup import Options, resolve
from shardwise.errors import ShardwiseError, UserError
from shardwise.spec.checkpoint import read_json
from shardwise.spec.config import read_model
from shardwise.spec.model import parameters

PEERS = ("llama.cpp", "transformers", "transformers-tp", "vllm", "vllm-tp")
FORMS = ("bf16", "int8", "int4", "int4:128")
GGUF = {"bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}
BESIDE = {"bf16": ("bf16", "int8"), "BF16": ("bf16",), "Q8_0": ("int8",), "Q4_0": ("int4", "int4:128")}
"""With which of our weights those of a peer are compared. On torch nobody has 8 bits here: they stand beside ours, too."""

PROBE = tuple(range(100, 132))
"""Ids after which logits are compared."""

COLUMNS = (
    Column("peer", "engine"), Column("format", "weights"), Column("bits_a_weight", "bits", ".2f"),
    Column("logit_error", "logits off by", ".1e"), Column("start_s", "start, s", ".1f"), Column("measure", "measured"),
    Column("batch", "batch"), Column("tokens_per_s", "tok/s", ".2f"), Column("min", "least", ".2f"),
    Column("max", "most", ".2f"), Column("beside", "beside our"), Column("ratio_min", "ours over it", ".2f"),
    Column("ratio_median", "median", ".2f"), Column("ratio_max", "most", ".2f"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wanted:
    """`weights` is a checkpoint's folder; what is made for peers goes to `folder`, and stays there. `threads` are all that an
    engine may use, `tp` our degree and that of peers that cut. `interpreters`: peers' own, by name, instead of environments."""

    weights: Path
    folder: Path
    peers: tuple[str, ...] = PEERS
    forms: tuple[str, ...] = FORMS
    batches: tuple[int, ...] = (1, 4, 16)
    context: int = 64
    steps: int = 24
    prompt: int = 512
    rounds: int = 5
    threads: int = 2
    tp: int = 2
    install: bool = False
    interpreters: Mapping[str, str] = field(default_factory=dict)
    patience_s: float = 600.0

    def __post_init__(self) -> None:
        for flag, given, known in (("--peers", self.peers, PEERS), ("--formats", self.forms, FORMS)):
            if wrong := [word for word in given if word not in known]:
                raise UserError(f"{flag} {wrong[0]}: it is one of {', '.join(known)}")
        if wrong := [name for name in self.interpreters if name not in environments.packages()]:
            raise UserError(f"--with {wrong[0]}=…: it is one of {', '.join(environments.packages())}")

    @property
    def parts(self) -> int:
        """About how often progress is told of."""
        return len(_entries(self)) * (1 + self.rounds * (len(self.batches) + 1)) + 1


@dataclass(frozen=True, slots=True)
class Entry:
    """Who takes part, and with which weights."""

    peer: str
    form: str

    @property
    def kind(self) -> str:
        """The engine, whether it cuts or not."""
        return self.peer.removesuffix("-tp")

    @property
    def stored(self) -> str:
        """The format in the words of the engine."""
        return GGUF[self.form] if self.kind == "llama.cpp" else self.form


@dataclass(slots=True)
class _Standing:
    """What is known of a contestant so far."""

    entry: Entry
    process: Contestant | None = None
    version: str | None = None
    start_s: float | None = None
    bits: float | None = None
    off: float | None = None
    error: str | None = None
    seconds: dict[tuple[str, int], list[float]] = field(default_factory=lambda: defaultdict(list))


def peers(wanted: Wanted, told: Told = untold) -> Report:
    """Everybody who starts, by turns; who does not is reported, and the others go on."""
    wanted.folder.mkdir(parents=True, exist_ok=True)
    told("the reference: float32")
    reference, why = _reference(wanted)
    standings = [_Standing(entry) for entry in _entries(wanted)]
    limits = []
    try:
        for standing in standings:
            told(f"{standing.entry.peer} {standing.entry.stored}: starting")
            _start(wanted, standing, reference, told)
        for _ in range(wanted.rounds):
            limits.append(max(stream(wanted.threads)))
            for do, batch in _measures(wanted):
                for standing in standings:
                    told(f"{standing.entry.peer} {standing.entry.stored}: {do}, batch {batch}")
                    _measure(wanted, standing, do, batch)
    finally:
        for standing in standings:
            if standing.process is not None:
                standing.process.close()
    return _report(wanted, standings, limits, why)


def _entries(wanted: Wanted) -> list[Entry]:
    """Ours first. Peers on torch have no weights of 8 or 4 bits that would run here."""
    names = [("shardwise", form) for form in wanted.forms]
    for peer in wanted.peers:
        has = GGUF if peer == "llama.cpp" else ("bf16",)
        names += [(peer, form) for form in wanted.forms if form in has]
    return [Entry(*each) for each in names]


def _measures(wanted: Wanted) -> list[tuple[str, int]]:
    return [*(("decode", batch) for batch in wanted.batches), ("prefill", 1)]


def _start(wanted: Wanted, standing: _Standing, reference: array[float] | None, told: Told) -> None:
    """Has a contestant load its weights, and compares its logits."""
    entry = standing.entry
    try:
        python = None if entry.kind == "shardwise" else _interpreter(wanted, entry.kind, told)
        model, standing.bits = _weights(wanted, entry, python)
        standing.process = _contestant(wanted, entry, python, model)
        standing.version, standing.start_s = standing.process.version, standing.process.start_s
        if reference is not None:
            standing.off = _off(_logits(wanted, standing.process), reference)
        standing.process.rest()
    except ShardwiseError as error:
        _fail(standing, error)


def _measure(wanted: Wanted, standing: _Standing, do: str, batch: int) -> None:
    if standing.process is None:
        return
    given = {"batch": batch, "context": wanted.context, "steps": wanted.steps} if do == "decode" else {"tokens": wanted.prompt}
    try:
        standing.process.wake()
        standing.seconds[do, batch].append(standing.process.ask(do, **given)["seconds"])
        standing.process.rest()
    except ShardwiseError as error:
        _fail(standing, error)


def _fail(standing: _Standing, error: ShardwiseError) -> None:
    standing.error = str(error)
    if standing.process is not None:
        standing.process.close()
    standing.process = None


def _interpreter(wanted: Wanted, kind: str, told: Told) -> str:
    if kind in wanted.interpreters:
        return wanted.interpreters[kind]
    if wanted.install:
        return str(environments.made(wanted.folder, kind, told))
    found = environments.interpreter(wanted.folder, kind)
    if not found.exists():
        raise ShardwiseError(f"{kind} is not installed; --install does that, --with {kind}=PYTHON names an environment")
    return str(found)


def _weights(wanted: Wanted, entry: Entry, python: str | None) -> tuple[str, float]:
    """What an engine loads, and the bits of a weight in it."""
    options = Options(str(wanted.weights), tp=1, dtype="bfloat16", device="cpu", max_model_len=wanted.context)
    if entry.kind != "llama.cpp":
        return str(wanted.weights), bits_a_weight(resolve(quantized(options, entry.form) if entry.form != "bf16" else options))
    assert python is not None
    target = wanted.folder / f"{wanted.weights.name}-{entry.stored}.gguf"
    if not target.exists():
        script = str(Path(__file__).with_name("gguf_export.py"))
        command = [python, script, str(wanted.weights), str(target), entry.stored]
        environments.run(command, "the conversion to GGUF", environments.surroundings(wanted.threads))
    return str(target), 8 * target.stat().st_size / parameters(read_model(read_json(wanted.weights / "config.json")))


def _contestant(wanted: Wanted, entry: Entry, python: str | None, model: str, dtype: str = "bfloat16") -> Contestant:
    tp = wanted.tp if entry.peer.endswith("-tp") or (entry.kind == "shardwise" and dtype != "float32") else 1
    order = {
        "kind": entry.kind, "model": model, "threads": wanted.threads, "tp": tp, "dtype": dtype,
        "batch": max(wanted.batches), "context": _room(wanted),
        "vocabulary": read_model(read_json(wanted.weights / "config.json")).vocab,
        "quantization": None if entry.form == "bf16" else entry.form,
    }  # fmt: skip
    environ = dict(os.environ)
    if python is not None:
        environ = {**environments.surroundings(wanted.threads), **environments.preloaded(python, entry.kind)}
    complaints = wanted.folder / f"{entry.peer}-{entry.form}.log"
    return Contestant(python, order, complaints, environ, wanted.patience_s)


def _room(wanted: Wanted) -> int:
    """Tokens that a sequence may need: those that decode while the prompts of others are read go further."""
    batch = max(wanted.batches)
    return max(wanted.prompt + 2, wanted.context + -(-batch * wanted.context // 256) + batch + wanted.steps + 2 * WARM + 4)


def _reference(wanted: Wanted) -> tuple[array[float] | None, str | None]:
    """This engine's logits in float32 on one rank; or why there are none."""
    try:
        found = _contestant(wanted, Entry("shardwise", "bf16"), None, str(wanted.weights), "float32")
        try:
            return _logits(wanted, found), None
        finally:
            found.close()
    except ShardwiseError as error:
        return None, f"logits are not compared: the reference failed: {error}"


def _logits(wanted: Wanted, process: Contestant) -> array[float]:
    path = wanted.folder / "logits"
    path.unlink(missing_ok=True)
    if not process.ask("logits", tokens=PROBE, path=str(path))["told"]:
        return array("f")
    return array("f", path.read_bytes())


def _off(found: Sequence[float], reference: Sequence[float]) -> float | None:
    """The length of the difference over that of the reference."""
    if len(found) != len(reference):
        return None
    apart = math.fsum((a - b) ** 2 for a, b in zip(found, reference, strict=True))
    return math.sqrt(apart / math.fsum(b * b for b in reference))


def _report(wanted: Wanted, standings: Sequence[_Standing], limits: Sequence[float], why: str | None) -> Report:
    ours = {standing.entry.form: standing for standing in standings if standing.entry.kind == "shardwise"}
    rows = [row for standing in standings for row in _rows(wanted, standing, ours)]
    notes = [
        f"{wanted.threads} threads, {wanted.context} tokens before the first that counts, prompts of {wanted.prompt}; ours at "
        f"tp {wanted.tp}",
        "a ratio is our speed over the engine's in the same round: least, median, most; with our weights in what is named",
        "start: from the beginning of the process until it has loaded its weights; vLLM's with what it has compiled before",
        "while one is measured, this engine waits and the others are stopped",
        f"stream limit of {wanted.threads} threads in the same run: {min(limits):.1f} to {max(limits):.1f} GB/s",
        f"logits: after {len(PROBE)} tokens, against this engine's in float32, relative to their length",
    ]
    notes += [why] if why else []
    failed = [standing for standing in standings if standing.error]
    notes += [f"{standing.entry.peer} {standing.entry.stored} failed: {standing.error}" for standing in failed]
    title = f"Beside others: {wanted.weights.name}"
    return Report("peers", title, COLUMNS, tuple(rows), tuple(notes), _chart(title, standings))


def _rows(wanted: Wanted, standing: _Standing, ours: Mapping[str, _Standing]) -> list[dict[str, Any]]:
    entry = standing.entry
    about = {
        "peer": entry.peer, "version": standing.version, "format": entry.stored, "error": standing.error,
        "bits_a_weight": standing.bits and round(standing.bits, 3), "logit_error": standing.off, "start_s": standing.start_s,
    }  # fmt: skip
    names = (entry.form,) if entry.kind == "shardwise" else BESIDE[entry.stored]
    beside = [ours[name] for name in names if name in ours]
    rows = [
        {**about, **_speed(wanted, do, batch, seconds), **_ratios(seconds, each, (do, batch))}
        for (do, batch), seconds in standing.seconds.items()
        for each in beside
    ]
    return rows or [{**about, "measure": None, "batch": None, "tokens_per_s": None}]


def _speed(wanted: Wanted, do: str, batch: int, seconds: Sequence[float]) -> dict[str, Any]:
    amount = batch if do == "decode" else wanted.prompt
    each = [round(amount / taken, 3) for taken in seconds]
    rates = spread(each, 3)
    found = {"tokens_per_s": rates["median"], "min": rates["min"], "max": rates["max"], "rounds": each}
    return {"measure": do, "batch": batch, **found}


def _ratios(seconds: Sequence[float], ours: _Standing, what: tuple[str, int]) -> dict[str, Any]:
    """Round by round; none where ours failed."""
    pairs = [it / us for it, us in zip(seconds, ours.seconds[what], strict=False)]
    found = spread(pairs, 4) if pairs else dict.fromkeys(("min", "median", "max"))
    return {"beside": ours.entry.form, **{f"ratio_{name}": value for name, value in found.items()}}


def _chart(title: str, standings: Sequence[_Standing]) -> Chart | None:
    """Tokens a second while answers are written, by batch."""
    lines = {}
    for standing in standings:
        found = [(do, batch, seconds) for (do, batch), seconds in standing.seconds.items() if do == "decode"]
        if found:
            lines[_short(standing.entry)] = [(batch, batch / spread(seconds, 9)["median"]) for _, batch, seconds in found]
    return Chart(title, "sequences at once", "tokens a second", lines, x_log=True, y_log=True, x_binary=True) if lines else None


def _short(entry: Entry) -> str:
    """A name of fourteen letters at most, as a chart has room for."""
    if entry.kind == "shardwise":
        return f"ours {entry.form}"
    return f"{entry.peer} {entry.stored}" if entry.kind == "llama.cpp" else entry.peer.replace("transformers-tp", "tp_plan")
