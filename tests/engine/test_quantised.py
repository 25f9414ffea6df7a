"""`--quantization`: what is refused and with which words, what is planned, and that ranks hold and answer as planned."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardwise.cli.cut import precision
from shardwise.engine import bridge
from shardwise.engine.engine import Engine
from shardwise.engine.ranks import start_message
from shardwise.engine.setup import Options, resolve
from shardwise.engine.text import open_tokenizer
from shardwise.errors import UserError
from shardwise.runtime.opening import layout_of
from shardwise.sched.request import SamplingParams
from shardwise.server.banner import plan
from shardwise.spec.formats import Grouped

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
ASKED = "<|bos|><|user|>What is tensor parallelism?<|end|><|assistant|>"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"quantization": "fp8"}, "--quantization 'fp8' is not known; choose one of int8, int4"),
        ({"quantization": "int4", "quantization_group": 48}, "--quantization-group-size 48 is not one of 16, 32, 64, 128"),
        ({"quantization_group": 64}, "--quantization-group-size 64 is no use alone; give --quantization int8 or int4, too"),
    ],
)
def test_what_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        resolve(Options("shardling", device="cpu", **given))
    assert str(raised.value) == message


def test_a_checkpoint_that_is_quantised_already_is_refused(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    config = json.loads((checkpoint("llama") / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"^--quantization int8: .* is quantised already \(.*q_proj is stored as fp8"):
        resolve(Options(str(tmp_path), device="cpu", quantization="int8"))


def test_a_setup_says_it_to_ranks_and_fronts() -> None:
    setup = resolve(Options("shardling", tp=3, device="cpu", quantization="int4", max_model_len=64))
    assert setup.quantization == Grouped("int4", 32)
    assert bridge.unpack_setup(bridge.pack_setup(setup)) == setup
    for rank in range(3):
        assert layout_of(start_message(setup, rank)) == setup.layout
    assert "params in int4 in groups of 32 (4.5 bits a weight) · tp=3" in plan(setup)
    # Heads of 16 keep the groups of what they come out of.
    assert precision(setup.layout.model, "bfloat16") == (
        "int4 in groups of 32 (4.5 bits a weight) and int4 in groups of 16 (5 bits a weight) and bfloat16"
    )


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_ranks_hold_and_answer_as_planned(kind: str) -> None:
    """The bundled model says what it learned by heart as it does with all its bits, on one rank and on three."""
    answers = []
    for tp, quantization in ((1, None), (1, kind), (3, kind)):
        options = Options("shardling", tp=tp, device="cpu", max_model_len=64, quantization=quantization, threads=1)
        setup = resolve(options)
        prompt = open_tokenizer(setup.folder).encode(ASKED, add_special_tokens=False)
        with Engine(setup, "threads") as engine:
            answers.append([token.chosen.token for token in engine.generate(prompt, GREEDY)])
            planned = [setup.layout.arena_bytes(rank) for rank in range(tp)]
            assert [ready.weight_bytes for ready in engine.ranks.ready] == planned
            whole = sum(planned)
        parameters = 4_106_688
        assert whole < parameters * {None: 2.1, "int8": 1.07, "int4": 0.62}[quantization]
    assert len(answers[0]) == 12 and answers[0] == answers[1] == answers[2]
