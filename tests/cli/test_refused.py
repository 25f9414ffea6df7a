"""Every bad input gives one clear line on standard error and exit code 2, before any process has started."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from shardwise.spec.config import read_model
from shardwise.spec.model import model_weights
from tests.cli.command import Done, shardwise

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "torch_dtype": "float32",
}


def tensors() -> dict[str, np.ndarray]:
    """What CONFIG asks for, all ones."""
    return {weight.name: np.ones(weight.shape, np.float32) for weight in model_weights(read_model(CONFIG))}


def written(folder: Path, stored: dict[str, np.ndarray] | None = None, **changes: Any) -> Path:
    """A checkpoint folder with these tensors and a config changed in these keys; None removes one."""
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors() if stored is None else stored, folder / "model.safetensors")
    return folder


def refused(done: Done, *parts: str) -> None:
    """One line that says all `parts`, exit code 2, nothing on standard output, no process left."""
    assert done.code == 2, done.err
    assert done.out == ""
    assert done.left == ()
    assert done.err.startswith("shardwise: error: ") and done.err.count("\n") == 1, done.err
    for part in parts:
        assert part in done.err


def generate(*args: str | bytes | Path, given: bytes = b"", **env: str) -> Done:
    return shardwise("generate", *args, given=given, **env)


# --- the model --------------------------------------------------------------------------------------------------------


def test_missing_folder(tmp_path):
    (tmp_path / "mistral-7b").mkdir()
    refused(generate(tmp_path / "mistral-8b", "-p", "x"), "there is no such folder", "nearest:", "mistral-7b")
    refused(generate("mistral", "-p", "x"), "nor a hub id", "org/name", "shardling")
    refused(generate("nobody/nothing", "-p", "x"), "HF_HUB_OFFLINE is set")


def test_a_file_in_place_of_the_folder(tmp_path):
    folder = written(tmp_path)
    refused(generate(folder / "config.json", "-p", "x"), "is a file", f"give the folder that holds it: {folder}")


def test_no_safetensors(tmp_path):
    folder = written(tmp_path)
    (folder / "model.safetensors").unlink()
    refused(generate(folder, "-p", "x"), "no *.safetensors", "download")
    (folder / "pytorch_model.bin").write_bytes(b"PK\3\4")
    refused(generate(folder, "-p", "x"), "pytorch_model.bin", "pickle", "convert it", "save_pretrained")


def test_no_config(tmp_path):
    folder = written(tmp_path)
    (folder / "config.json").unlink()
    refused(generate(folder, "-p", "x"), "config.json", "No such file")
    (folder / "config.json").write_text('{"model_type": ')
    refused(generate(folder, "-p", "x"), "config.json", "not valid JSON")


def test_truncated(tmp_path):
    folder = written(tmp_path)
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for kept in (4, 100, len(whole) - 1):
        file.write_bytes(whole[:kept])
        refused(generate(folder, "-p", "x"), "model.safetensors", "download it again")


def damaged(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Changes the header of a safetensors file in place."""

    def apply(file: Path) -> None:
        data = file.read_bytes()
        [size] = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + size])
        change(header)
        raw = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + size :])

    return apply


def overlap(header: dict[str, Any]) -> None:
    header["model.norm.weight"]["data_offsets"] = header["model.layers.0.input_layernorm.weight"]["data_offsets"]


def grow(header: dict[str, Any]) -> None:
    header["model.norm.weight"]["shape"] = [17]


@pytest.mark.parametrize(("change", "message"), [(overlap, "overlaps"), (grow, "needs 68 bytes, data_offsets give 64")])
def test_damaged_headers(tmp_path, change, message):
    folder = written(tmp_path)
    damaged(change)(folder / "model.safetensors")
    refused(generate(folder, "-p", "x"), "model.norm.weight", message)


def test_config_contradicts_weights(tmp_path):
    refused(generate(written(tmp_path, intermediate_size=32), "-p", "x"), "[24, 16]", "[32, 16]", "not of the same model")
    refused(generate(written(tmp_path, num_hidden_layers=2), "-p", "x"), "lacks model.layers.1.")
    refused(generate(written(tmp_path, num_key_value_heads=3), "-p", "x"), "num_key_value_heads", "must divide")


def test_a_tensor_missing_misshapen_or_unread(tmp_path):
    stored = tensors()
    missing = {name: t for name, t in stored.items() if name != "model.norm.weight"}
    refused(generate(written(tmp_path, missing), "-p", "x"), "lacks model.norm.weight")
    bent = {**stored, "model.norm.weight": np.ones((4, 4), np.float32)}
    refused(generate(written(tmp_path, bent), "-p", "x"), "model.norm.weight has shape [4, 4]", "[16]")
    more = {**stored, "model.layers.0.mlp.router.weight": np.ones((2, 16), np.float32)}
    refused(generate(written(tmp_path, more), "-p", "x"), "model.layers.0.mlp.router.weight")


def test_unknown_architecture(tmp_path):
    refused(generate(written(tmp_path, model_type="lama"), "-p", "x"), "model_type 'lama'", "nearest: llama")
    refused(generate(written(tmp_path, rope_scaling={"rope_type": "spiral"}), "-p", "x"), "spiral")
    refused(generate(written(tmp_path, attn_logit_softcapping=30.0), "-p", "x"), "attn_logit_softcapping")


def test_no_tokenizer(tmp_path):
    refused(generate(written(tmp_path), "-p", "x"), "tokenizer.json")


# --- the cut ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("generate", "-p", "x"), ("inspect",), ("chat",)])
def test_degree_above_the_heads(tmp_path, command):
    name, *rest = command
    refused(shardwise(name, written(tmp_path), *rest, "-tp", "5"), "above the 4 query heads", "largest that works is -tp 4")


@pytest.mark.parametrize("command", [("generate", "-p", "x"), ("inspect",)])
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-tp", "0"], "0"),
        (["-tp", "-2"], "-2"),
        (["-tp", "2", "--shares", "1,2,3"], "3 shares (1,2,3) for 2 ranks; give exactly 2"),
        (["--shares", "1,0"], "each must be positive"),
        (["--shares", "-1,2"], "each must be positive"),
        (["-ts", "nan,1"], "each must be positive and finite"),
        (["-ts", "inf,1"], "each must be positive and finite"),
        (["--tensor-split", "one,two"], "'one,two' is not a list of numbers"),
        (["--tensor-split", "3,,1"], "is not a list of numbers"),
        (["--dtype", "flaot32"], "--dtype 'flaot32' is not known"),
        (["--kv-cache-dtype", "int4"], "--kv-cache-dtype 'int4' is not known; choose one of auto, float32"),
        (["--kv-cache-dtype", "fp8_e4m3"], "--kv-cache-dtype fp8_e4m3: 8-bit floats are not kept here; int8"),
    ],
)  # fmt: skip
def test_bad_cuts(command, args, message):
    refused(shardwise(*command, *args), message)


# --- where it runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--device", "tpu"], "--device 'tpu' is not known; choose one of auto, cpu, cuda"),
        (["--device", "cuda"], "this machine shows 0; use --device cpu"),
        (["--load-format", "gguf"], "--load-format 'gguf' is not known"),
        (["--memory", "1MiB"], "--memory allows 1 MiB"),
        (["--memory", "lots"], "'lots' is not a size; write a number of bytes, or 1500MiB"),
        (["--memory", "-3GiB"], "'-3GiB' is not a size"),
        (["--memory", "5 bananas"], "is not a size"),
        (["--memory", "0"], "'0' is 0 bytes"),
        (["--max-model-len", "100000"], "this model takes 1 to"),
        (["--max-model-len", "short"], "'short' is not a whole number"),
        (["-c", "0"], "it takes at least 1"),
        (["--threads", "0"], "it takes at least 1"),
        (["--revision", "main"], "is a local folder; leave it out"),
    ],
)
def test_bad_places(args, message):
    refused(generate("-p", "x", *args), message)


# --- the request ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--temperature", "-1"], "temperature is -1.0"),
        (["--temperature", "nan"], "temperature is nan"),
        (["--temp", "inf"], "temperature is inf"),
        (["--temp", "warm"], "invalid float value: 'warm'"),
        (["--top-p", "0"], "top_p is 0.0"),
        (["--top-p", "1.5"], "top_p is 1.5"),
        (["--top-k", "-2"], "top_k is -2"),
        (["--min-p", "nan"], "min_p is nan"),
        (["--seed", "-1"], "seed is -1"),
        (["-n", "0"], "max_tokens is 0"),
        (["-n", "5", "--min-tokens", "6"], "min_tokens is 6, above max_tokens, which is 5"),
        (["-n", "2000000"], "max_tokens is 2000000"),
        (["--stop", ""], "at least one character"),
        (["--json", "--logprobs", "21"], "logprobs is 21"),
        (["--logprobs", "2"], "add --json"),
        (["--system", "Be brief."], "add --chat"),
    ],
)  # fmt: skip
def test_sampling_values(args, message):
    refused(generate("-p", "x", *args), message)


def test_a_checkpoint_s_own_sampling_values(tmp_path):
    folder = written(tmp_path)
    (folder / "generation_config.json").write_text('{"temperature": -3}')
    refused(generate(folder, "-p", "x"), "generation_config.json", "temperature is -3")


def test_prompts(tmp_path):
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9")
    (tmp_path / "empty.txt").write_bytes(b"\n")
    refused(generate("-p", ""), "the prompt from --prompt is empty", "--prompt-file")
    refused(generate(), "the prompt from standard input is empty")
    refused(generate("-p", "-"), "the prompt from standard input is empty")
    refused(generate("-f", tmp_path / "empty.txt"), "empty.txt is empty")
    refused(generate("-f", tmp_path / "none.txt"), "none.txt: No such file")
    refused(generate("-f", tmp_path), "Is a directory")
    refused(generate("-p", b"caf\xe9"), "not UTF-8: byte 3 is 0xE9")
    refused(generate("-f", latin), "latin.txt is not UTF-8: byte 3 is 0xE9")
    refused(generate(given=b"\xff"), "standard input is not UTF-8: byte 0 is 0xFF")


def test_prompts_longer_than_the_context():
    long = "word " * 200
    refused(
        generate("-p", long, "--max-model-len", "32"), "tokens; with at least one to generate it may have 31", "--max-model-len"
    )
    refused(generate("-p", "Hello", "--max-model-len", "32", "-n", "40"), "max_tokens is 40", "ask for at most")
