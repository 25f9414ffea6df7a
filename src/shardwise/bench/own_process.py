"""This engine as one contestant among others, in a process of its own: `python -m shardwise.bench.own_process ORDER`."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shardwise.bench import speed
from shardwise.bench.cases import quantized
from shardwise.bench.peer_process import private_answers, serve
from shardwise.engine.engine import Engine
from shardwise.engine.process_ranks import ProcessRanks
from shardwise.engine.setup import Options, resolve
from shardwise.sched.scheduler import Scheduler
from shardwise.sched.sequence import Request


class Own:
    """A model in this engine. Logits are told before anything else is asked, and not after."""

    def __init__(self, order: dict[str, Any]) -> None:
        options = Options(
            order["model"], tp=order["tp"], dtype=order["dtype"], device="cpu", threads=order["threads"] // order["tp"] or 1,
            max_model_len=order["context"], max_num_seqs=order["batch"], enable_prefix_caching=False,
        )  # fmt: skip
        options = options if order["quantization"] is None else quantized(options, order["quantization"])
        self._setup = resolve(options)
        self._ranks = ProcessRanks(self._setup)
        self._engine: Engine | None = None
        self.version = f"shardwise, tp {order['tp']}"

    def decode(self, batch: int, context: int, steps: int) -> float:
        """The median of the steps."""
        return statistics.median(speed.decode(self._started(), batch, context, steps))

    def prefill(self, tokens: int) -> float:
        """From the request to its first token."""
        return speed.prefill(self._started(), 1, tokens)

    def logits(self, tokens: Sequence[int], path: Path) -> bool:
        """Those after the last token."""
        assert self._engine is None, "the engine has the ranks by now"
        scheduler = Scheduler(
            self._setup.pages, [group.window for group in self._setup.layout.cache], self._setup.limits, lambda: 0.0
        )
        scheduler.add(Request(1, tuple(tokens), 1))
        step, _ = scheduler.step()
        assert step is not None
        last = [message.logits for message in self._ranks.logits(step)][-1]
        path.write_bytes(last[-4 * self._setup.layout.model.vocab :])
        return True

    def _started(self) -> Engine:
        if self._engine is None:
            self._engine = Engine(self._setup, self._ranks)
        return self._engine

    def close(self) -> None:
        """Nothing of it is left."""
        if self._engine is None:
            self._ranks.close()
        else:
            self._engine.close()


def main() -> None:
    """The process."""
    order, tell = json.loads(sys.argv[1]), private_answers()
    made: list[Own] = []

    def load() -> Own:
        made.append(Own(order))
        return made[0]

    try:
        serve(load, sys.stdin, tell)
    finally:
        for each in made:
            each.close()


if __name__ == "__main__":
    main()
