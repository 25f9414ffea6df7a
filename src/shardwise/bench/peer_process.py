"""One engine of other people in a process of its own: loads a model, and carries orders out, a line of JSON each.

Run by path in that engine's own environment, where shardwise is not: it imports the standard library and the engine alone.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TextIO

WARM = 2
Order = dict[str, Any]


class Contestant(Protocol):
    """A model that is loaded. `version` names the engine's."""

    version: str

    def decode(self, batch: int, context: int, steps: int) -> float:
        """Seconds of a step in which `batch` sequences, each of `context` tokens at first, get a token each: the median."""

    def prefill(self, tokens: int) -> float:
        """Seconds until a prompt of so many tokens is read."""

    def logits(self, tokens: Sequence[int], path: Path) -> bool:
        """Writes the logits after the last token, float32; False where the engine does not tell them."""


class LlamaCpp:
    """llama.cpp by llama-cpp-python's binding of its C interface: a GGUF file, a new context for each measurement."""

    def __init__(self, order: Order) -> None:
        self.version = f"llama-cpp-python {version('llama-cpp-python')}"
        self._c: Any = import_module("llama_cpp")
        self._np: Any = import_module("numpy")
        self._threads: int = order["threads"]
        self._c.llama_backend_init()
        params = self._c.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = self._c.llama_model_load_from_file(order["model"].encode(), params)
        if not self._model:
            raise RuntimeError(f"llama.cpp does not load {order['model']}")
        self._vocabulary: int = order["vocabulary"]

    def decode(self, batch: int, context: int, steps: int) -> float:
        made = self._context(batch, context + steps + WARM + 1)
        for sequence in range(batch):
            prompt = [(3 + sequence + 7 * place) % self._vocabulary for place in range(context)]
            self._run(made, [(token, place, sequence) for place, token in enumerate(prompt)], last=True)
        times, tokens = [], [3 + sequence for sequence in range(batch)]
        for step in range(steps + WARM):
            begun = time.perf_counter()
            self._run(made, [(token, context + step, sequence) for sequence, token in enumerate(tokens)], last=False)
            tokens = [int(self._row(made, sequence).argmax()) for sequence in range(batch)]
            times.append(time.perf_counter() - begun)
        self._c.llama_free(made)
        return statistics.median(times[WARM:])

    def prefill(self, tokens: int) -> float:
        made = self._context(1, tokens + 1)
        begun = time.perf_counter()
        self._run(made, [((3 + 7 * place) % self._vocabulary, place, 0) for place in range(tokens)], last=True)
        self._row(made, -1).argmax()
        taken = time.perf_counter() - begun
        self._c.llama_free(made)
        return taken

    def logits(self, tokens: Sequence[int], path: Path) -> bool:
        made = self._context(1, len(tokens) + 1)
        self._run(made, [(token, place, 0) for place, token in enumerate(tokens)], last=True)
        path.write_bytes(self._row(made, -1).astype("<f4").tobytes())
        self._c.llama_free(made)
        return True

    def _context(self, batch: int, tokens: int) -> Any:
        params = self._c.llama_context_default_params()
        params.n_ctx = batch * (-(-tokens // 256) * 256)
        params.n_batch = max(512, tokens)
        params.n_seq_max = batch
        params.n_threads = params.n_threads_batch = self._threads
        made = self._c.llama_init_from_model(self._model, params)
        if not made:
            raise RuntimeError("llama.cpp makes no context")
        return made

    def _run(self, made: Any, rows: list[tuple[int, int, int]], *, last: bool) -> None:
        """A forward over (token, place, sequence); logits of all rows, or of the last."""
        batch = self._c.llama_batch_init(len(rows), 0, 1)
        for i, (token, place, sequence) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, place, 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = not last or i == len(rows) - 1
        batch.n_tokens = len(rows)
        code = self._c.llama_decode(made, batch)
        self._c.llama_batch_free(batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code}")

    def _row(self, made: Any, row: int) -> Any:
        found = self._c.llama_get_logits_ith(made, row)
        return self._np.ctypeslib.as_array(ctypes.cast(found, ctypes.POINTER(ctypes.c_float)), (self._vocabulary,))


class Transformers:
    """transformers on torch, one process; with a tp_plan one a rank, which all get the same orders."""

    def __init__(self, order: Order) -> None:
        self.version = f"transformers {version('transformers')}, torch {version('torch')}"
        self._torch: Any = import_module("torch")
        self._torch.set_num_threads(max(1, order["threads"] // order["tp"]))
        module: Any = import_module("transformers")
        module.logging.set_verbosity_error()
        module.logging.disable_progress_bar()
        plan = {}
        if order["tp"] > 1:
            dist: Any = import_module("torch.distributed")
            rank, size = int(os.environ["RANK"]), order["tp"]
            dist.init_process_group("gloo", init_method=f"file://{order['meeting']}", rank=rank, world_size=size)
            plan = {"tp_plan": "auto"}
        dtype = getattr(self._torch, order["dtype"])
        self._model = module.AutoModelForCausalLM.from_pretrained(order["model"], dtype=dtype, local_files_only=True, **plan)
        self._model.eval()
        self._vocabulary: int = order["vocabulary"]

    def decode(self, batch: int, context: int, steps: int) -> float:
        times = []
        with self._torch.inference_mode():
            found = self._model(self._prompts(batch, context), use_cache=True, logits_to_keep=1)
            for _ in range(steps + WARM):
                begun = time.perf_counter()
                tokens = found.logits[:, -1:].argmax(-1)
                found = self._model(tokens, past_key_values=found.past_key_values, use_cache=True)
                found.logits[0, -1, 0].item()
                times.append(time.perf_counter() - begun)
        return statistics.median(times[WARM:])

    def prefill(self, tokens: int) -> float:
        with self._torch.inference_mode():
            begun = time.perf_counter()
            self._model(self._prompts(1, tokens), use_cache=True, logits_to_keep=1).logits.argmax(-1).tolist()
            return time.perf_counter() - begun

    def logits(self, tokens: Sequence[int], path: Path) -> bool:
        with self._torch.inference_mode():
            found = self._model(self._torch.tensor([list(tokens)]), logits_to_keep=1).logits[0, -1].float()
        path.write_bytes(found.numpy().astype("<f4").tobytes())
        return True

    def _prompts(self, batch: int, tokens: int) -> Any:
        rows = [[(3 + row + 7 * place) % self._vocabulary for place in range(tokens)] for row in range(batch)]
        return self._torch.tensor(rows)


class Vllm:
    """vLLM on CPUs. It gives no times of steps: one is the difference of two runs."""

    def __init__(self, order: Order) -> None:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1" if order["tp"] > 1 else "0"
        if order["tp"] > 1:  # its own choice keeps a core a rank for what does not compute: here none would be left
            cores = sorted(os.sched_getaffinity(0))[: order["threads"]]
            share = max(1, len(cores) // order["tp"])
            parts = [cores[rank * share % len(cores) :][:share] for rank in range(order["tp"])]
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "|".join(",".join(map(str, part)) for part in parts))
        self._module: Any = import_module("vllm")
        self.version = f"vllm {self._module.__version__}"
        self._llm = self._module.LLM(
            model=order["model"], dtype=order["dtype"], tensor_parallel_size=order["tp"], skip_tokenizer_init=True,
            max_model_len=order["context"], max_num_seqs=order["batch"], enable_prefix_caching=False,
            max_logprobs=order["vocabulary"], logprobs_mode="raw_logits",
        )  # fmt: skip
        self._vocabulary: int = order["vocabulary"]

    def decode(self, batch: int, context: int, steps: int) -> float:
        self._seconds(batch, context, 1 + WARM)  # the first after a rest is slow, and would make the difference too small
        for _ in range(3):
            short, long = (self._seconds(batch, context, tokens) for tokens in (1 + WARM, 1 + WARM + steps))
            if long > short:
                return (long - short) / steps
        raise RuntimeError(f"{steps} more tokens took no longer, three times: give more --steps")

    def prefill(self, tokens: int) -> float:
        return self._seconds(1, tokens, 1)

    def logits(self, tokens: Sequence[int], path: Path) -> bool:
        params = self._module.SamplingParams(max_tokens=1, logprobs=self._vocabulary, ignore_eos=True, detokenize=False)
        found = self._llm.generate([{"prompt_token_ids": list(tokens)}], params, use_tqdm=False)[0].outputs[0].logprobs[0]
        path.write_bytes(array("f", (found[token].logprob for token in range(self._vocabulary))).tobytes())
        return True

    def _seconds(self, batch: int, context: int, tokens: int) -> float:
        params = self._module.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        rows = [[(3 + row + 7 * place) % self._vocabulary for place in range(context)] for row in range(batch)]
        begun = time.perf_counter()
        self._llm.generate([{"prompt_token_ids": row} for row in rows], params, use_tqdm=False)
        return time.perf_counter() - begun


def carry_out(contestant: Contestant, order: Order) -> dict[str, Any]:
    """The answer to one order."""
    given = {name: value for name, value in order.items() if name != "do"}
    match order["do"]:
        case "decode":
            return {"seconds": contestant.decode(**given)}
        case "prefill":
            return {"seconds": contestant.prefill(**given)}
        case "logits":
            return {"told": contestant.logits(given["tokens"], Path(given["path"]))}
    raise ValueError(f"{order['do']!r} is no order")


def age() -> float:
    """Seconds since this process began, with all that was imported since; to a hundredth (proc(5), field 22 of stat)."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")


def serve(load: Callable[[], Contestant], orders: TextIO, tell: Callable[[dict[str, Any]], None]) -> None:
    """Loads, says so, and carries out orders to their end. What fails is told, and what comes after it tried."""
    try:
        contestant = load()
    except Exception as error:
        tell({"error": f"{type(error).__name__}: {error}"})
        return
    tell({"version": contestant.version, "start_s": round(age(), 2)})
    for line in orders:
        try:
            tell(carry_out(contestant, json.loads(line)))
        except Exception as error:
            tell({"error": f"{type(error).__name__}: {error}"})


def private_answers() -> Callable[[dict[str, Any]], None]:
    """Where answers go: what was standard output, which libraries print to; from now on theirs goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return lambda answer: print(json.dumps(answer), file=answers)


def lead(order: Order, tell: Callable[[dict[str, Any]], None]) -> None:
    """Starts a process a rank and passes all orders to each of them, and on what the first answers."""
    with tempfile.TemporaryDirectory() as folder:
        own = {**order, "meeting": f"{folder}/meeting"}
        ranks = []
        for rank in range(order["tp"]):
            out = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
            places = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(order["tp"])}
            command = [sys.executable, __file__, json.dumps(own)]
            ranks.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, text=True, env={**os.environ, **places}))
        try:
            assert ranks[0].stdout is not None
            tell(json.loads(ranks[0].stdout.readline() or '{"error": "rank 0 ended"}'))
            for line in sys.stdin:
                for process in ranks:
                    assert process.stdin is not None
                    process.stdin.write(line)
                    process.stdin.flush()
                tell(json.loads(ranks[0].stdout.readline() or '{"error": "rank 0 ended"}'))
        finally:
            for process in ranks:
                process.kill()
                process.wait()


KINDS: dict[str, Callable[[Order], Contestant]] = {"llama.cpp": LlamaCpp, "transformers": Transformers, "vllm": Vllm}


def main() -> None:
    """The process."""
    order: Order = json.loads(sys.argv[1])
    tell = private_answers()
    if order["kind"] == "transformers" and order["tp"] > 1 and "RANK" not in os.environ:
        lead(order, tell)
    else:
        serve(lambda: KINDS[order["kind"]](order), sys.stdin, tell)


if __name__ == "__main__":
    main()
