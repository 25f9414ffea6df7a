"""`LLM` on a fake engine: order, threads, closing, Ctrl-C; nothing hangs, nothing is left open. And once on a real one."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import shardwise
from shardwise import LLM, RequestError, SamplingParams, ShardwiseError, UserError
from shardwise.engine.fake import FakeEngine

Make = Callable[..., FakeEngine]
ENDLESS = SamplingParams(max_tokens=None, ignore_eos=True)


def until(what: Callable[[], bool]) -> None:
    """Returns once it is so; the test's own limit of time ends a wait in vain."""
    pause = threading.Event()
    while not what():
        pause.wait(0.001)


def interrupt() -> None:
    """Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)


# --- generate ---------------------------------------------------------------------------------------------------------


def test_names():
    for name in shardwise.__all__:
        assert getattr(shardwise, name).__name__ == name
    assert set(shardwise.__all__) <= set(dir(shardwise)) and shardwise.__version__
    with pytest.raises(AttributeError, match="no attribute 'LMM'"):
        shardwise.LMM  # noqa: B018


def test_results_come_in_the_order_of_the_prompts(fake: Make):
    # The later the prompt, the sooner it ends.
    llm = LLM.on(fake(lambda _prompt, _choice, place: 7 + place))
    params = [SamplingParams(max_tokens=20 - n) for n in range(20)]
    outputs = llm.generate([f"prompt {n}" for n in range(20)], params)
    assert [output.prompt for output in outputs] == [f"prompt {n}" for n in range(20)]
    assert [len(output.outputs[0].token_ids) for output in outputs] == [20 - n for n in range(20)]
    assert all(output.finished and output.outputs[0].finish_reason == "length" for output in outputs)
    tokenizer = llm.get_tokenizer()
    for output in outputs:
        whole = tokenizer.decode([*output.prompt_token_ids, *output.outputs[0].token_ids])
        assert whole == output.prompt + output.outputs[0].text


def test_several_choices(fake: Make):
    [output] = LLM.on(fake()).generate("Once", SamplingParams(n=3, max_tokens=4, logprobs=1))
    assert [choice.index for choice in output.outputs] == [0, 1, 2]
    assert len({tuple(choice.token_ids) for choice in output.outputs}) == 3
    assert all(len(choice.logprobs) == 4 for choice in output.outputs)


def test_stop_strings_finish_the_choice_in_the_engine(fake: Make):
    engine = fake()
    llm = LLM.on(engine)
    tokenizer = llm.get_tokenizer()
    ids = tokenizer.encode("one two three", add_special_tokens=False)
    engine.answer = lambda _prompt, _choice, place: ids[place % len(ids)]
    [output] = llm.generate("x", SamplingParams(max_tokens=None, stop="two"))
    assert output.outputs[0].text == "one " and output.outputs[0].stop_reason == "two"
    assert engine.finished == [(1, 0)] and engine.running == 0


def test_what_ends_and_what_never_comes_up_reaches_the_engine(fake: Make):
    engine = fake()
    llm = LLM.on(engine)
    [eos, *_] = llm.get_tokenizer().eos_ids
    engine.answer = lambda _prompt, _choice, place: [9, eos, 3][place % 3]
    [output] = llm.generate("x", SamplingParams(max_tokens=6))
    assert output.outputs[0].token_ids == [9, eos]
    [output] = llm.generate("x", SamplingParams(max_tokens=6, ignore_eos=True))
    assert output.outputs[0].token_ids == [9, eos, 3, 9, eos, 3]
    [output] = llm.generate("x", SamplingParams(max_tokens=6, ignore_eos=True, stop_token_ids=[3]))
    assert (output.outputs[0].token_ids, output.outputs[0].stop_reason) == ([9, eos, 3], 3)


def test_ten_thousand_prompts_at_once(fake: Make):
    engine = fake()
    outputs = LLM.on(engine).generate([[n % 100 + 1] for n in range(10_000)], SamplingParams(max_tokens=2, detokenize=False))
    assert [output.prompt_token_ids for output in outputs] == [[n % 100 + 1] for n in range(10_000)]
    assert engine.running == 0 and len(engine.submitted) == 10_000


def test_scoring(fake: Make):
    [output] = LLM.on(fake()).generate([[1, 2, 3]], SamplingParams(max_tokens=0, prompt_logprobs=2))
    assert output.prompt_logprobs[0] is None and [next(iter(p)) for p in output.prompt_logprobs[1:]] == [2, 3]
    assert output.outputs[0].text == "" and output.finished


def test_chat(fake: Make):
    llm = LLM.on(fake())
    said = [{"role": "user", "content": "Hi"}]
    [one] = llm.chat(said, SamplingParams(max_tokens=2))
    assert "Hi" in one.prompt and one.prompt_token_ids != llm.generate("Hi")[0].prompt_token_ids
    assert [output.prompt for output in llm.chat([said, said])] == [one.prompt] * 2
    with pytest.raises(RequestError, match=r"conversation 1: messages\[0\]\.role is 'usr'"):
        llm.chat([said, [{"role": "usr", "content": "Hi"}]])


def test_a_seed_of_the_llm_gives_each_request_its_own(fake: Make):
    seeds = []
    for _ in range(2):
        engine = fake()
        llm = LLM.on(engine, seed=5)
        llm.generate(["a", "b"])
        llm.generate("a", SamplingParams(seed=1))
        seeds.append([params.seed for _, params in engine.submitted])
    assert seeds[0] == seeds[1] and seeds[0][0] != seeds[0][1] and seeds[0][2] == 1
    engine = fake()
    LLM.on(engine).generate("a")
    assert engine.submitted[0][1].seed is None


def test_defaults_are_the_checkpoint_s(fake: Make):
    engine = fake()
    llm = LLM.on(engine)
    llm.generate("a")
    assert engine.submitted[0][1] == llm.get_default_sampling_params()
    assert llm.get_default_sampling_params().max_tokens == 16


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "prompts is empty"),
        (None, {}, "prompts is None"),
        (["a", 5], {}, "prompt 1 is 5"),
        (["a", "\ud800"], {}, "prompt 1 has half a surrogate pair"),
        ([[1], [99999]], {}, "prompt 1: the prompt: token id 99999 is not in this model's vocabulary"),
        (["a", [1] * 5000], {}, "prompt 1: the prompt has 5000 tokens"),
        ("a", {"sampling_params": SamplingParams(max_tokens=100_000)}, "max_tokens is 100000"),
        ("a", {"sampling_params": {"temperature": 1}}, "sampling_params is {'temperature': 1}; it takes SamplingParams"),
        (["a"], {"sampling_params": [SamplingParams()] * 2}, "sampling_params is a list of 2 for 1 prompts"),
        (["a"], {"sampling_params": [None]}, "sampling_params[0] is None"),
        ("a", {"sampling_params": SamplingParams(stop_token_ids=[99999])}, "stop_token_ids: token id 99999 is not in"),
        ("a", {"sampling_params": SamplingParams(logit_bias={99999: 1})}, "logit_bias: token id 99999 is not in"),
        ("a", {"priority": "high"}, "priority is 'high'; it takes a whole number"),
        (["a"], {"priority": [1, 2]}, "priority is a list of 2 for 1 prompts"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_left(fake: Make, prompts, options, message):
    engine = fake(held=True)
    with pytest.raises(RequestError, match=re.escape(message)):
        LLM.on(engine).generate(prompts, **options)
    until(lambda: engine.running == 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensor_parallel_size": 0}, "tensor_parallel_size is 0; it takes a whole number from 1"),
        ({"tensor_parallel_size": "2"}, "tensor_parallel_size is '2'"),
        ({"tensor_parallel_size": 99}, "above the 12 query heads"),
        ({"tensor_split": "3,1"}, "tensor_split is '3,1'; it takes a list of numbers"),
        ({"tensor_split": [1, None]}, "tensor_split is [1, None]"),
        ({"tensor_split": []}, "tensor_split is []; it takes a list of numbers"),
        ({"max_model_len": True}, "max_model_len is True"),
        ({"max_num_seqs": 0}, "max_num_seqs is 0"),
        ({"max_num_batched_tokens": 1.5}, "max_num_batched_tokens is 1.5"),
        ({"enable_prefix_caching": 1}, "enable_prefix_caching is 1; it takes True or False"),
        ({"ranks": "fibres"}, "ranks is 'fibres'; it takes 'processes' or 'threads'"),
        ({"dtype": "float8"}, "--dtype 'float8' is not known"),
        ({"seed": -1}, "seed is -1"),
        ({"model": "no-such-model"}, "nor a hub id"),
        ({"model": None}, "model is None; it takes a folder or org/name"),
        ({"kv_cache_memory_bytes": 5}, "--kv-cache-memory allows 5 bytes"),
        ({"kv_cache_memory_bytes": 2000}, "--kv-cache-memory allows 2 KiB"),
    ],
)
def test_what_an_llm_cannot_be_made_of(options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        LLM(**options)


# --- threads, closing, Ctrl-C -----------------------------------------------------------------------------------------


def test_several_threads_at_once(fake: Make):
    llm = LLM.on(fake())
    found: dict[int, list[str]] = {}

    def work(n: int) -> None:
        outputs = llm.generate([f"{n} {k}" for k in range(30)], SamplingParams(max_tokens=n + 1))
        found[n] = [output.prompt for output in outputs if len(output.outputs[0].token_ids) == n + 1]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: [f"{n} {k}" for k in range(30)] for n in range(8)}


def test_closing_ends_what_other_threads_wait_for(fake: Make):
    engine = fake(held=True)
    llm = LLM.on(engine)
    errors: list[Exception] = []

    def work() -> None:
        try:
            llm.generate(["a", "b"], ENDLESS)
        except ShardwiseError as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: engine.running == 6)
    llm.close()
    for thread in threads:
        thread.join()
    assert [str(error) for error in errors] == ["prompt 0 failed: the engine was closed"] * 3
    with pytest.raises(ShardwiseError, match="the engine was closed"):
        llm.generate("a")
    llm.close()


def test_leaving_the_context_and_dropping_it_close_the_engine(fake: Make):
    first, second = fake(), fake()
    with LLM.on(first) as llm:
        llm.generate("a")
    LLM.on(second).generate("a")
    gc.collect()
    for engine in (first, second):
        with pytest.raises(ShardwiseError, match="closed"):
            engine.submit([1], SamplingParams(), print)


def test_one_failure_aborts_the_rest(fake: Make):
    engine = fake(lambda prompt, _choice, place: -1 if prompt[0] == 2 and place == 3 else 9)
    llm = LLM.on(engine)
    with pytest.raises(ShardwiseError, match="prompt 1 failed: no finite logits at token 3"):
        llm.generate([[1], [2], [3]], ENDLESS)
    until(lambda: engine.running == 0)
    assert llm.generate([[1]])[0].finished


def test_ctrl_c_aborts_its_requests_and_leaves_it_usable(fake: Make):
    engine = fake(held=True)
    llm = LLM.on(engine)

    def press() -> None:
        until(lambda: engine.running == 3)
        interrupt()

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["a", "b", "c"], ENDLESS)
    thread.join()
    assert sorted(engine.aborted) == [1, 2, 3] and engine.running == 0
    engine.allow(100)
    assert llm.generate("a", SamplingParams(max_tokens=3))[0].finished


# --- imports ----------------------------------------------------------------------------------------------------------


def test_an_llm_s_face_loads_no_torch(tmp_path: Path):
    code = (
        "import sys; from shardwise import LLM, AsyncLLM, SamplingParams; "
        "print([n for n in ('torch', 'numpy', 'tokenizers', 'rich', 'jinja2', 'transformers') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == "[]"


# --- the real engine --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", ["processes", "threads"])
def test_with_a_model(ranks):
    params = SamplingParams(n=2, temperature=0.8, top_p=0.95, max_tokens=12, seed=1, logprobs=2)
    with LLM(tensor_parallel_size=2, dtype="float32", ranks=ranks, device="cpu") as llm:
        outputs = llm.generate(["Once upon a time", "The cat"], params, use_tqdm=False)
        again = llm.generate("The cat", params, use_tqdm=False)
    assert [choice.text for choice in outputs[1].outputs] == [choice.text for choice in again[0].outputs]
    assert outputs[0].outputs[0].token_ids != outputs[0].outputs[1].token_ids
    for choice in (*outputs[0].outputs, *outputs[1].outputs):
        assert len(choice.token_ids) == len(choice.logprobs) <= 12


def test_a_script_needs_no_guard_and_no_close(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(
        "from shardwise import LLM, SamplingParams\n"
        "outputs = LLM(tensor_parallel_size=2, device='cpu').generate('Once', SamplingParams(max_tokens=3, ignore_eos=True))\n"
        "print(len(outputs[0].outputs[0].token_ids))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "3", "")
