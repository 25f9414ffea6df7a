"""Degrees that other engines refuse, on real shapes; degrees up to all heads; and the 16-bit dtypes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.group import Group, even, layout_of
from tests.parity.reference import LIMIT, NEW, Reference, Score, compare

Checkpoints = Callable[[str], Path]
References = Callable[..., list[Reference]]

QWEN: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
    "dtype": "bfloat16",
}
"""Qwen2.5-0.5B with two of its 24 layers."""

VOCABULARY = 4099
"""In place of 50 000 or 150 000 rows, which would take most of the time; one slow test keeps them."""

LLAMA_9_3 = ("SmolLM-135M-seqcls.json", {"num_hidden_layers": 2, "architectures": ["LlamaForCausalLM"]})
GPT2_25 = ("gpt2-xl.json", {"n_layer": 2})


def shape(data: Path, name: str, changes: dict[str, Any]) -> dict[str, Any]:
    return {**json.loads((data / "configs" / name).read_text()), **changes}


def dummy_logits(config: dict[str, Any], shares: tuple[float, ...]) -> torch.Tensor:
    """Logits of a prompt in two chunks and of a token after it, with random weights."""
    with Group(layout_of(config, shares), None, context=64, chunk=32) as group:
        sequence = group.request()
        sequence.tokens[:] = [(i * 37 + 5) % 4000 for i in range(30)]
        first = group.logits(sequence.take(20)), group.logits(sequence.take())
        sequence.tokens.append(11)
        return torch.cat((*first, group.logits(sequence.take())))


def check_against_one(config: dict[str, Any], *degrees: tuple[float, ...]) -> float:
    want = dummy_logits(config, even(1))
    assert want.std() > 0.1, "flat logits would agree too easily"
    worst = 0.0
    for shares in degrees:
        worst = max(worst, ((dummy_logits(config, shares) - want).abs().max() / want.abs().max()).item())
    assert worst <= LIMIT
    return worst


def test_qwen_at_3_5_7(figures: Callable[..., None]) -> None:
    """14 query heads that read 2 KV heads."""
    worst = check_against_one(QWEN | {"vocab_size": VOCABULARY}, even(3), even(5), even(7), (3.0, 1.0, 1.0))
    figures("Qwen2.5-0.5B's shape at 3, 5, 7", worst=worst)


def test_smollm_at_2_4(data: Path, figures: Callable[..., None]) -> None:
    """9 query heads that read 3 KV heads."""
    worst = check_against_one(shape(data, *LLAMA_9_3) | {"vocab_size": VOCABULARY}, even(2), even(4))
    figures("SmolLM-135M's shape at 2, 4", worst=worst)


def test_gpt2_xl_at_3(data: Path, figures: Callable[..., None]) -> None:
    """25 heads."""
    worst = check_against_one(shape(data, *GPT2_25) | {"vocab_size": VOCABULARY}, even(3))
    figures("GPT-2 XL's shape at 3", worst=worst)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_whole_vocabularies(data: Path, figures: Callable[..., None]) -> None:
    figures("Qwen2.5-0.5B's shape, whole", worst=check_against_one(QWEN, even(3), even(5), even(7)))
    figures("SmolLM-135M's shape, whole", worst=check_against_one(shape(data, *LLAMA_9_3), even(2), even(4)))
    figures("GPT-2 XL's shape, whole", worst=check_against_one(shape(data, *GPT2_25), even(3)))


# --- up to all heads --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [12, 16])
def test_as_many_ranks_as_heads(
    degree: int, checkpoint: Checkpoints, references: References, figures: Callable[..., None]
) -> None:
    folder, wanted, score = checkpoint("wide"), references("wide"), Score()
    with Group(layout_of(folder, even(degree)), folder, sequences=2) as group:
        compare(group, wanted, score)
    figures("parity 16 heads at 12, 16", worst=score.worst, tokens=score.tokens, ties=score.ties)
    assert score.worst <= LIMIT and score.ties == 0


@pytest.mark.parametrize("shares", [(1.0, 1e-6), (1e-6, 1.0, 1e-6), (100.0, 1.0, 1.0)], ids=str)
@pytest.mark.parametrize("name", ["llama", "qwen3-biased", "gpt2", "gemma2", "olmo2", "falcon-7b", "deepseek-v2"])
def test_ranks_that_hold_nothing(name: str, shares: tuple[float, ...], checkpoint: Checkpoints, references: References) -> None:
    folder, wanted, score = checkpoint(name), references(name), Score()
    layout = layout_of(folder, shares)
    assert any(layout.kv_bytes_per_token(rank) == 0 for rank in range(len(shares)))
    with Group(layout, folder, sequences=2) as group:
        compare(group, wanted, score)
    assert score.worst <= LIMIT and score.ties == 0


# --- 16 bits ----------------------------------------------------------------------------------------------------------

ROUNDING = {"bfloat16": 2.0**-8, "float16": 2.0**-11}


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("shares", [even(1), (3.0, 1.0, 1.0)], ids=str)
@pytest.mark.parametrize(
    "name", ["llama-9-3", "granite", "qwen3", "gpt2", "phi3", "gemma2", "gemma3", "olmo3", "gpt-neox", "deepseek-dense"]
)
def test_sixteen_bits(
    name: str,
    shares: tuple[float, ...],
    dtype: str,
    checkpoint: Checkpoints,
    references: References,
    figures: Callable[..., None],
) -> None:
    """As near to the float32 model as transformers in the same dtype is, and so to transformers itself."""
    folder, exact, same = checkpoint(name), references(name)[1], references(name, dtype)[1]
    with Group(layout_of(folder, shares, dtype), folder) as group:
        sequence = group.request()
        sequence.tokens[:] = exact.prompt
        logits = group.logits(sequence.take())
        chosen = [int(logits[-1].argmax())]
        while len(chosen) < NEW:
            sequence.tokens.append(chosen[-1])
            chosen.append(int(group.logits(sequence.take())[-1].argmax()))
    ours, theirs = relative(logits, exact.logits), relative(same.logits, exact.logits)
    apart = relative(logits, same.logits)
    figures(f"{dtype}, error against float32", ours=ours, transformers=theirs, apart=apart)
    assert ours <= 2 * theirs + ROUNDING[dtype]
    assert apart <= 2 * theirs + ROUNDING[dtype]
    # Greedy decoding leaves the float32 path only where rounding could make it: the first tokens are the same.
    margin = exact.steps[0].topk(2).values
    if (margin[0] - margin[1]) / exact.steps[0].abs().max() > 2 * ours:
        assert chosen[0] == exact.tokens[0]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()
