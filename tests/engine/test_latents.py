"""What a forward over latents takes in memory, against what it is estimated to take."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CONFIG = {
    "model_type": "deepseek_v2",
    "vocab_size": 1000,
    "hidden_size": 2048,
    "intermediate_size": 1408,
    "num_hidden_layers": 1,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "first_k_dense_replace": 1,
    "q_lora_rank": None,
    "max_position_embeddings": 8192,
}
"""DeepSeek-V2-Lite's attention."""

FORWARD = """
import json, resource, sys
from shardwise.engine.memory import Demand
from shardwise.runtime.worker import peak_bytes
from tests.group import Group, even, layout_of
layout = layout_of(json.loads(sys.argv[1]), even(1), sys.argv[2])
with Group(layout, None, context=8192, chunk=512) as group:
    group.runners[0].cache.arena.fill_(0)
    request = group.request()
    request.tokens[:] = [i % 1000 for i in range(8192)]
    group.logits(request.take(16, wants=1))
    request.computed = 8192 - 512
    before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
    group.logits(request.take(512, wants=1))
    peak = peak_bytes()
print(json.dumps([peak - before, Demand(layout, "cpu", None, None, 512, 1).activation_bytes(0, 8192, 8192)]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_chunk_at_the_end_of_a_long_context_takes_no_more_than_estimated(dtype: str, figures: Callable[..., None]) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", FORWARD, json.dumps(CONFIG), dtype]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=root)
    assert done.returncode == 0, done.stderr
    taken, estimated = json.loads(done.stdout)
    figures(f"MiB of a chunk over latents, {dtype}", taken=taken / 2**20, estimated=estimated / 2**20)
    assert estimated / 3 < taken <= estimated
