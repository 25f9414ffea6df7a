"""`shardwise inspect`: the numbers are the layout's, the drawing fits a terminal, and a config.json is enough."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shardwise.spec.config import read_model
from shardwise.spec.layout import Layout, Shares
from shardwise.spec.mesh import Mesh
from tests.cli.command import shardwise
from tests.engine.hub_server import Hub, Repo

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "llama-70b" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(CONFIG))
    return path


def layout(*shares: float) -> Layout:
    return Layout(read_model(CONFIG), Mesh(tp=len(shares)), Shares.of(shares), "bfloat16", "bfloat16")


def inspect(*args: str | Path, **env: str) -> str:
    done = shardwise("inspect", *args, **env)
    assert (done.code, done.err, done.left) == (0, "", ())
    return done.out


@pytest.mark.parametrize("shares", [(1.0,), (1.0,) * 6, (3.0, 1.0), (1.0,) * 64])
def test_json_agrees_with_the_layout(config, shares):
    flags = ["-tp", str(len(shares))] if len(set(shares)) == 1 else ["--shares", ",".join(map(str, shares))]
    found = json.loads(inspect(config.parent, *flags, "--json"))
    expected = layout(*shares)
    assert found["model"] == "llama-70b"
    assert [part["weight_bytes"] for part in found["ranks"]] == [expected.weight_bytes(r) for r in range(len(shares))]
    assert [part["kv_token_bytes"] for part in found["ranks"]] == [expected.kv_bytes_per_token(r) for r in range(len(shares))]
    totals = found["totals"]
    assert totals["parameters"] == 70_553_706_496
    assert totals["held_bytes"] == sum(part["weight_bytes"] for part in found["ranks"])
    assert totals["held_bytes"] == totals["whole_bytes"] + totals["uncut_bytes"] + totals["shared_bytes"]
    assert sum(count for *_, count in totals["collectives"]) == (0 if len(shares) == 1 else 162)
    heads = sorted(head for part in found["ranks"] for head in range(*part["q"]))
    assert heads == list(range(64))


def test_kv_heads_on_two_ranks_are_marked(config):
    found = json.loads(inspect(config, "-tp", "6", "--json"))
    holders = [head for part in found["ranks"] for head in range(*part["kv"])]
    for part in found["ranks"]:
        assert part["shared"] == [head for head in range(*part["kv"]) if holders.count(head) > 1]
    drawn = inspect(config, "-tp", "6")
    assert "* some of these KV heads are on another rank too" in drawn
    assert "*" not in inspect(config, "-tp", "8")


@pytest.mark.parametrize("degree", ["1", "2", "6", "13", "64"])
def test_the_drawing_fits_a_terminal(config, degree):
    drawn = inspect(config, "-tp", degree)
    assert max(map(len, drawn.splitlines())) <= 100
    assert all(line == line.rstrip() for line in drawn.splitlines())
    assert drawn.count("q_proj") == 1 and "80 equal layers" in drawn
    assert sum(line.startswith("rank ") for line in drawn.splitlines()) == int(degree) + 1
    assert "\x1b" not in drawn


def test_without_unicode(config):
    drawn = inspect(config, "-tp", "3", PYTHONIOENCODING="ascii")
    assert drawn.isascii() and "?" not in drawn and "####" in drawn


def test_the_bundled_model_needs_no_name():
    assert inspect("-tp", "2").startswith("shardling")
    assert inspect("shardling", "-tp", "2") == inspect("-tp", "2")


def test_a_model_of_the_hub_that_is_not_here():
    done = shardwise("inspect", "nobody/nothing")
    assert (done.code, done.out) == (2, "") and done.err.count("\n") == 1
    assert "HF_HUB_OFFLINE is set" in done.err


def test_of_a_model_of_the_hub_only_the_config_is_fetched(tmp_path):
    files = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": b"gigabytes"}
    with Hub({"acme/llama-70b": Repo(files)}) as hub:
        place = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path), "NO_PROXY": "*"}
        found = json.loads(inspect("acme/llama-70b", "-tp", "2", "--json", HF_HUB_OFFLINE="0", **place))
        assert found["model"] == "acme/llama-70b" and found["totals"]["parameters"] == 70_553_706_496
        assert not [seen for seen in hub.seen if "safetensors" in seen.path]
    again = json.loads(inspect("acme/llama-70b", "-tp", "2", "--json", HF_HUB_OFFLINE="1", **place))
    assert again == found


def test_layers_that_differ_are_shown_once_each(tmp_path):
    kinds = ["full_attention", "sliding_attention"] * 4
    config = {
        **CONFIG, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": 8,
        "layer_types": kinds, "use_sliding_window": True, "sliding_window": 4096,
    }  # fmt: skip
    (tmp_path / "mixed.json").write_text(json.dumps(config))
    drawn = inspect(tmp_path / "mixed.json", "-tp", "2")
    assert drawn.startswith("mixed ")
    assert "model.layers.0,2,4,6 " in drawn and "model.layers.1,3,5,7 " in drawn
    assert drawn.count("4 equal layers") == 2 and "sees the last 4096 tokens" in drawn


def test_experts_are_shown(tmp_path: Path) -> None:
    mixture = CONFIG | {"model_type": "mixtral", "num_local_experts": 8, "num_hidden_layers": 2, "num_attention_heads": 8}
    (tmp_path / "config.json").write_text(json.dumps(mixture))
    inside = json.loads(inspect(tmp_path, "-tp", "3", "--json"))
    whole = json.loads(inspect(tmp_path, "-tp", "3", "--enable-expert-parallel", "--json"))
    assert (inside["expert_parallel"], whole["expert_parallel"]) == (False, True)
    assert [part["experts"] for part in inside["ranks"]] == [[0, 8]] * 3
    assert [part["experts"] for part in whole["ranks"]] == [[0, 3], [3, 5], [5, 8]]
    assert [part["expert_rows"] for part in whole["ranks"]] == [[0, 28672]] * 3
    assert sum(len(range(*part["expert_rows"])) for part in inside["ranks"]) == 28672
    for found in (inside, whole):
        assert [branch["collective"] for branch in found["blocks"] if branch["shape"] == "8 experts, 2 a token"] == [
            "all-reduce"
        ]
    assert inside["totals"]["collectives"] == whole["totals"]["collectives"]
    assert "a part of every expert" in inspect(tmp_path, "-tp", "3")


def test_whole_experts_of_a_model_without_any(config: Path) -> None:
    done = shardwise("inspect", config.parent, "-tp", "2", "--enable-expert-parallel")
    assert done.code == 2 and "this model (llama) has none; without --enable-expert-parallel it works" in done.err
