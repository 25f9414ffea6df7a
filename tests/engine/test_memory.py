"""A model that exceeds one device: 2 GB of weights, 1500 MiB a rank, under a limit that the kernel enforces."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np
import pytest

from shardwise.engine.memory import RANK_BYTES
from shardwise.engine.setup import Options, resolve
from shardwise.errors import CapacityError
from shardwise.spec.config import read_model
from shardwise.spec.model import model_weights

MIB = 2**20
LIMIT = 1500 * MIB

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}

ENGINE = """
import json, sys
from shardwise.engine.engine import Engine
from shardwise.engine.setup import Options, resolve
from shardwise.sched.request import SamplingParams
more = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
setup = resolve(Options(sys.argv[1], **{"tp": 2, **more}, device="cpu", memory=int(sys.argv[2])))
with Engine(setup) as engine:
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    tokens = [t.chosen.token for t in engine.generate(list(range(100, 164)), params)]
    ready = [[r.weight_bytes, r.kv_bytes, r.peak_bytes] for r in engine.ranks.ready]
print(json.dumps({"tokens": tokens, "ready": ready, "context": setup.context}))
"""


def write_model(folder: Path) -> None:
    """The config, and 2.08 GB of plausible numbers in bfloat16, written without holding them in memory."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    header: dict[str, object] = {}
    end = 0
    for weight in model_weights(read_model(CONFIG)):
        size = 2 * prod(weight.shape)
        header[weight.name] = {"dtype": "BF16", "shape": list(weight.shape), "data_offsets": [end, end + size]}
        end += size
    head = json.dumps(header).encode()
    # Floats near 0.02, cut to their upper half: that is bfloat16.
    noise = np.random.default_rng(0).normal(0, 0.02, 2**22 + 7).astype(np.float32)
    block = (noise.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for start in range(0, end, len(block)):
            file.write(block[: end - start])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large") / "llama-1b"
    write_model(folder)
    return folder


def limited() -> None:
    """No process from here on may have more than LIMIT of memory of its own (the kernel then refuses to give it)."""
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))


def limited_to(limit: int) -> Callable[[], None]:
    """The same for another limit."""
    return lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_refused_on_one_rank_and_runs_on_two(model: Path, figures: Callable[..., None]) -> None:
    with pytest.raises(CapacityError, match="--memory allows 1500 MiB: use -tp 2"):
        resolve(Options(str(model), tp=1, device="cpu", memory=LIMIT))
    command = [sys.executable, "-c", ENGINE, str(model), str(LIMIT)]
    done = subprocess.run(command, preexec_fn=limited, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert len(shown["tokens"]) == 4
    largest = max(2 * prod(weight.shape) for weight in model_weights(read_model(CONFIG)))
    for weights, cache, peak in shown["ready"]:
        sizes = {"weights": weights, "cache": cache, "largest_tensor": largest, "peak": peak}
        figures("MiB of a rank of a 2 GB model", **{name: float(size // MIB) for name, size in sizes.items()})
        assert peak <= weights + cache + largest + RANK_BYTES["cpu"]
        assert peak <= LIMIT


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_limit_is_real(model: Path) -> None:
    """The control: the same limit stops one rank that tries to hold everything."""
    command = [
        sys.executable,
        "-c",
        ENGINE.replace("memory=int(sys.argv[2])", ""),
        str(model),
        "0",
        json.dumps({"tp": 1, "max_model_len": 512}),
    ]
    done = subprocess.run(command, preexec_fn=limited, capture_output=True, text=True, timeout=600)
    assert done.returncode != 0
    assert "rank 0 was lost during load" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_what_is_quantised_is_never_there_as_a_whole_in_more_bits(model: Path, kind: str, figures: Callable[..., None]) -> None:
    """One rank under a limit that the dense weights exceed; loading it takes little more than what it ends with."""
    limit = 1750 * MIB if kind == "int8" else LIMIT
    more = json.dumps({"tp": 1, "max_model_len": 512, "max_num_seqs": 1, "quantization": kind})
    command = [sys.executable, "-c", ENGINE, str(model), str(limit), more]
    done = subprocess.run(command, preexec_fn=limited_to(limit), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    [(weights, cache, peak)] = json.loads(done.stdout)["ready"]
    dense = 2 * sum(prod(weight.shape) for weight in model_weights(read_model(CONFIG)))
    bits = {"int8": 8.25, "int4": 4.5}[kind]
    assert weights == pytest.approx(dense * bits / 16, rel=0.001)
    layer = 2 * (2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192)
    sizes = {"weights": weights, "cache": cache, "layer": layer, "peak": peak}
    figures(f"MiB of a rank of a 2 GB model in {kind}", **{name: float(size // MIB) for name, size in sizes.items()})
    assert peak <= 1.15 * weights + layer + cache + RANK_BYTES["cpu"]
