"""`make lm-eval`: lm-eval scores texts over HTTP, without a tokenizer of its own, and finds what transformers does.

It runs in an environment of its own (`.clients/lm-eval`), which is made where it is missing; LM_EVAL names another.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from shardwise.bench.about import commit, machine
from tests.scoring.expected import Judge
from tests.server.live import Live, serving

VERSION = "0.4.13"
TASKS = Path(__file__).parent / "tasks"
ROOT = Path(__file__).parents[2]
HOME = ROOT / ".clients" / "lm-eval"
LIMIT = 1e-4
"""The largest difference of a log-likelihood, in nats, and of bits per byte."""

LONGEST = 256
"""The `max_length` that lm-eval is told; it keeps one token for the answer, and another one of each window for its context."""

TRAINED = "TinyStories-656K"


def command() -> list[str]:
    """The program, installed where it is missing."""
    if given := os.environ.get("LM_EVAL"):
        return [given]
    found = HOME / "bin" / "lm_eval"
    if not found.exists():
        subprocess.run([sys.executable, "-m", "venv", str(HOME)], check=True)
        pip = [str(HOME / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        # Its evaluation of local tasks imports torch, though nothing is computed with it. From where setup has it.
        [torch] = (line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
        subprocess.run([*pip, *os.environ.get("TORCH_ARGS", "").split(), torch], check=True)
        subprocess.run([*pip, f"lm-eval[api]=={VERSION}", torch], check=True)
    return [str(found)]


def scored(live: Live, name: str) -> tuple[str, dict[str, list[dict[str, Any]]]]:
    """(the version of lm-eval, the samples of both tasks as it logs them)."""
    model = {"model": name, "base_url": f"{live.url}/v1/completions", "tokenizer_backend": "remote", "num_concurrent": 4,
             "max_length": LONGEST, "max_retries": 1}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        words = [*command(), "--model", "local-completions", "--model_args", ",".join(f"{k}={v}" for k, v in model.items()),
                 "--tasks", "shardwise_choices,shardwise_prose", "--include_path", str(TASKS), "--log_samples",
                 "--output_path", folder]  # fmt: skip
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": folder, "OPENAI_API_KEY": "none", "PYTHONPATH": ""}
        done = subprocess.run(words, cwd=TASKS, env=env, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"lm-eval ended with exit code {done.returncode}:\n{done.stderr[-3000:]}")
        files = {task: next(Path(folder).rglob(f"samples_{task}_*.jsonl")) for task in ("shardwise_choices", "shardwise_prose")}
        version: str = json.loads(next(Path(folder).rglob("results_*.json")).read_text("utf-8"))["lm_eval_version"]
        return version, {task: [json.loads(line) for line in file.open(encoding="utf-8")] for task, file in files.items()}


def compared(samples: dict[str, list[dict[str, Any]]], judge: Judge, prefix: int) -> dict[str, Any]:
    """How far lm-eval's figures are from those of transformers, at most."""
    likelihoods, bits, tokens = 0.0, 0.0, 0
    for sample in samples["shardwise_choices"]:
        for given, ((theirs, _greedy),) in zip(sample["arguments"].values(), sample["resps"], strict=True):
            ours = judge.continuation(given["arg_0"], given["arg_1"])
            likelihoods = max(likelihoods, abs(ours - float(theirs)))
            tokens += len(judge.encode(given["arg_1"]))
    totals = [0.0, 0.0, 0]
    for sample in samples["shardwise_prose"]:
        text = sample["arguments"]["gen_args_0"]["arg_0"]
        ours, theirs, size = judge.rolling(text, prefix), float(sample["resps"][0][0]), len(text.encode())
        likelihoods = max(likelihoods, abs(ours - theirs))
        bits = max(bits, abs(ours - theirs) / size / math.log(2))
        totals = [totals[0] + ours, totals[1] + theirs, totals[2] + size]
        tokens += len(judge.encode(text))
    return {
        "samples": sum(len(sample["resps"]) for task in samples.values() for sample in task),
        "tokens": tokens,
        "largest_log_likelihood_difference": likelihoods,
        "largest_bits_per_byte_difference": bits,
        "bits_per_byte": -totals[1] / totals[2] / math.log(2),
        "bits_per_byte_transformers": -totals[0] / totals[2] / math.log(2),
    }


def models() -> dict[str, Path]:
    """The bundled one, and a trained one where the data is there."""
    from shardwise.engine.hub import bundled

    found = {"shardling": bundled()}
    if data := os.environ.get("SHARDWISE_TEST_DATA"):
        found[TRAINED] = Path(data) / "weights" / TRAINED
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--degrees", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    told = " ".join(["python -m tests.scoring.harness --degrees", *map(str, asked.degrees)])
    result: dict[str, Any] = {"command": told, "commit": commit(), "machine": machine(), "limit": LIMIT, "models": {}}
    worst = 0.0
    for name, folder in models().items():
        judge, rows = Judge(folder, LONGEST - 2), result["models"].setdefault(name, {})
        for degree in asked.degrees:
            model = () if name == "shardling" else (folder,)
            with serving(*model, "-tp", str(degree), "--dtype", "float32", "--threads", "1") as live:
                status, tokenizer = live.ask("/tokenizer_info")
                assert status == 200, tokenizer
                # lm-eval begins with the beginning token; where that is 0, it takes it for none, and begins with the end token.
                edges = (tokenizer.get("bos_token"), tokenizer["eos_token"])
                prefix = next(number for edge in edges if edge and (number := judge.encode(edge)[0]))
                (served,) = (model["id"] for model in live.ask("/v1/models")[1]["data"])
                result["lm_eval"], samples = scored(live, served)
                rows[f"tp={degree}"] = row = compared(samples, judge, prefix)
            print(name, f"tp={degree}", row, file=sys.stderr, flush=True)
            worst = max(worst, row["largest_log_likelihood_difference"], row["largest_bits_per_byte_difference"])
    text = json.dumps(result, indent=1)
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n", encoding="utf-8")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
