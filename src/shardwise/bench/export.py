"""The same weights for everybody: a folder of safetensors with random ones, made once and found again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch

from shardwise.engine.setup import Options, layout_of
from shardwise.errors import ShardwiseError
from shardwise.runtime.load import arena, fill_dummy
from shardwise.spec.binding import bind
from shardwise.spec.checkpoint import open_checkpoint, read_json
from shardwise.spec.config import read_model

NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def checkpoint(config: Path, target: Path) -> Path:
    """The folder `target` as a checkpoint of the model in `config`, with the random weights that `--load-format dummy` gives.

    One that is there already is taken as it is. ShardwiseError where the disk has no room, or the model's tensors are not
    stored by their own names.
    """
    if (target / "model.safetensors").exists() and (target / "config.json").read_bytes() == config.read_bytes():
        return target
    model = read_model(read_json(config))
    layout = layout_of(Options("", tp=1), model)
    _, tensors = arena(layout, 0, torch.device("cpu"))
    fill_dummy(tensors, layout.slices(0), lambda _: None)
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(config, target / "config.json")
    _write(target / "model.safetensors", tensors)
    try:
        bind(model, open_checkpoint(target))
    except ShardwiseError as error:
        (target / "model.safetensors").unlink()
        raise ShardwiseError(f"{config.parent.name} cannot be written for others: {error}; give a MODEL with weights") from None
    return target


def _write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """A safetensors file: the length of the header, the header, the bytes in its order. It has its name when it is whole."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        dtype = NAMES[str(tensor.dtype).removeprefix("torch.")]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    unfinished = path.with_suffix(f".{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in tensors.values():
                file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
        unfinished.rename(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise ShardwiseError(f"the weights cannot be written to {path}: {error.strerror}; give another --folder") from None
