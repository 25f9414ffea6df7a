"""A Llama's folder of safetensors as GGUF, in F32, F16, BF16, Q8_0 or Q4_0: `python gguf_export.py FOLDER FILE TYPE`.

Run by path in an environment with the `gguf` package, whose own quantisers are used: the peer's numbers, not ours. The names,
keys and the turned rows of q and k are as in convert_hf_to_gguf.py of llama.cpp. Every matrix is stored in TYPE, so that the
bits a weight are what its name says.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

ENDS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
WHOLE = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
WHOLE |= {"lm_head.weight": "output.weight"}


def tensors(folder: Path, np: Any) -> Iterator[tuple[str, Any]]:
    """(name, values in float32) of everything that is stored."""
    for path in sorted(folder.glob("*.safetensors")):
        raw = np.memmap(path, np.uint8, "r")
        size = int(raw[:8].view("<u8")[0])
        header = json.loads(raw[8 : 8 + size].tobytes())
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = (8 + size + at for at in entry["data_offsets"])
            yield name, _wide(raw[begin:end].tobytes(), entry["dtype"], np).reshape(entry["shape"])


def _wide(data: bytes, dtype: str, np: Any) -> Any:
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float32)


def renamed(name: str) -> str:
    """A tensor's name in GGUF. KeyError where it has none."""
    if name in WHOLE:
        return WHOLE[name]
    _, _, layer, end = name.split(".", 3)
    return f"blk.{layer}.{ENDS[end.removesuffix('.weight')]}.weight"


def turned(values: Any, heads: int) -> Any:
    """Rows of q or k in pairs, as ggml rotates them, and not in halves."""
    rows, columns = values.shape
    return values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def keys(writer: Any, config: dict[str, Any], gguf: Any, kind: str) -> None:
    """What llama.cpp must know of the model. Of text it knows nothing: it is asked in ids."""
    rope = config.get("rope_parameters") or config
    heads = config["num_attention_heads"]
    writer.add_name("bench")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_value_length(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope.get("rope_theta", 10000.0))
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    known = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16", "Q8_0": "MOSTLY_Q8_0", "Q4_0": "MOSTLY_Q4_0"}
    writer.add_file_type(int(gguf.LlamaFileType[known[kind]]))


def once(found: Iterator[tuple[str, Any]], tied: bool) -> Iterator[tuple[str, Any]]:
    """A tied table under the name of the embedding, whichever of its two names it is stored by, or both."""
    names = ("model.embed_tokens.weight", "lm_head.weight")
    seen = False
    for name, values in found:
        if tied and name in names:
            if seen:
                continue
            seen = True
            name = names[0]
        yield name, values


def main() -> None:
    """The conversion; the file has its name when it is whole."""
    folder, target, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    gguf, np = import_module("gguf"), import_module("numpy")
    config = json.loads((folder / "config.json").read_text())
    rope = config.get("rope_scaling") or (config.get("rope_parameters") or {})
    if config["model_type"] != "llama" or rope.get("rope_type", "default") != "default":
        raise SystemExit(f"only a plain Llama is written as GGUF here, not {config['model_type']} {rope.get('rope_type', '')}")
    unfinished = target.with_suffix(".unfinished")
    writer = gguf.GGUFWriter(unfinished, "llama")
    keys(writer, config, gguf, kind)
    heads = {"q_proj": config["num_attention_heads"]}
    heads["k_proj"] = config.get("num_key_value_heads") or heads["q_proj"]
    wanted = gguf.GGMLQuantizationType[kind]
    for name, values in once(tensors(folder, np), bool(config.get("tie_word_embeddings"))):
        part = next((heads[word] for word in heads if word in name), None)
        values = values if part is None else turned(values, part)
        stored = wanted if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(renamed(name), gguf.quants.quantize(np.ascontiguousarray(values), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(target)


if __name__ == "__main__":
    main()
