"""What the choice of tokens takes in memory, against what it is estimated to take."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SAMPLE = """
import json, resource, sys
import torch
from shardwise.engine.memory import Demand
from shardwise.runtime.worker import peak_bytes
from shardwise.sched.step import Draw, Edit
from tests.group import even
from tests.runtime.sampling import Sampled, item, layout_for
vocabulary, case = 128_256, sys.argv[1]
def sample(rows, vocabulary):
    logits = torch.randn(rows, vocabulary)
    draws = {
        "narrowed": [Draw(i, 1.0, i, top_p=0.9 if i else 1.0, edit=Edit(allowed=tuple(range(100)))) for i in range(rows)],
        "whole": [Draw(i, 1.0, i, top_k=2000, edit=Edit(barred=(1,))) for i in range(rows)],
        "scored": [Draw(0, 0.0, 0)],
    }[case]
    targets = tuple(range(rows - 1)) if case == "scored" else ()
    items = [item(draw, targets=targets, top=20 * bool(targets)) for draw in draws]
    before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
    Sampled(logits, items, draws, even(1))
    return peak_bytes() - before
sample(16, 1000)
rows = {"narrowed": 80, "whole": 16, "scored": 65}[case]
taken = sample(rows, vocabulary)
demand = Demand(layout_for(vocabulary, even(1)), "cpu", None, None, 512, 1 if case == "scored" else rows)
print(json.dumps([taken, demand.sampling_bytes(demand.layout.mesh.coords(0), 512)]))
"""


@pytest.mark.parametrize("case", ["narrowed", "whole", "scored"])
def test_the_choice_of_tokens_takes_no_more_than_estimated(case: str, figures: Callable[..., None]) -> None:
    command = [sys.executable, "-c", SAMPLE, case]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    taken, estimated = json.loads(done.stdout)
    figures(f"MiB to choose tokens, {case}", taken=taken / 2**20, estimated=estimated / 2**20)
    assert estimated / 3 < taken <= estimated
