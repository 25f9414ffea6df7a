"""Trains shardling from the books of a folder and our own chats, and saves a usable model every few minutes."""

import argparse
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path

import books
import facts as questions
import torch
import vocabulary
from corpus import Corpus, Row, encode, gather, sample
from dialogues import Dialogue, turn
from muon import Muon
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

SEED = 20
ROWS, LENGTH = 8, 256  # a step: 8 rows of 256 tokens, or as many tokens in rows of CONTEXT
LONG_EVERY = 8
WARMUP, FLOOR, DECAY, CLIP = 20, 0.05, 0.1, 1.0
MUON_RATE = 0.015
ARCHITECTURE = {
    "vocab_size": vocabulary.SIZE, "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6,
    "num_attention_heads": 12, "num_key_value_heads": 6, "head_dim": 16, "max_position_embeddings": vocabulary.CONTEXT,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False, "hidden_act": "silu",
    "initializer_range": 0.02,
}  # fmt: skip


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    facts = questions.load()
    tokenizer = prepared_tokenizer(args.books, args.out, facts)
    corpus = gather(args.books, tokenizer, facts)
    model = fresh(tokenizer)
    if args.resume:
        model.load_state_dict(load_file(args.resume), strict=False)
    print(f"{len(facts)} facts, {sum(map(len, corpus.train_books))} book tokens, {model.num_parameters()} parameters")
    loop(model, corpus, args)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--books", type=Path, required=True, help="folder of the public-domain texts")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--minutes", type=float, default=60, help="the learning rate reaches its end after these")
    parser.add_argument("--rate", type=float, default=2.5e-3, help="highest learning rate of AdamW")
    parser.add_argument("--book-share", type=float, default=0.45, help="share of rows that are slices of books")
    parser.add_argument("--resume", type=Path, help="a checkpoint in fp32 to start from")
    parser.add_argument("--keep", type=Path, help="where to write the fp32 checkpoint")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="torch.compile the step: about 1.4 times as fast")
    parser.add_argument("--save-every", type=float, default=5, help="minutes")
    return parser.parse_args()


def prepared_tokenizer(folder: Path, out: Path, facts: Sequence[questions.Fact]) -> Tokenizer:
    """The tokenizer of `out`; made from books and chats where there is none yet."""
    path = out / "tokenizer.json"
    if not path.exists():
        texts = books.load(folder)[0] + sample(facts, random.Random(SEED), 2000) * 3
        vocabulary.save(vocabulary.train(texts), out)
    return Tokenizer.from_file(str(path))


def fresh(tokenizer: Tokenizer) -> LlamaForCausalLM:
    ids = {"bos": vocabulary.BOS, "eos": vocabulary.END, "pad": vocabulary.PAD}
    config = LlamaConfig(
        **ARCHITECTURE,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        **{f"{name}_token_id": tokenizer.token_to_id(token) for name, token in ids.items()},
    )
    return LlamaForCausalLM(config)


def loop(model: LlamaForCausalLM, corpus: Corpus, args: argparse.Namespace) -> None:
    """Train until `--minutes` are over; the schedule follows the clock, so any machine gets the whole cosine."""
    optimisers = made(model, args.rate)
    dice = random.Random(SEED + 1 if args.resume else SEED)
    step_loss = torch.compile(weighed_loss, dynamic=False) if args.compile else weighed_loss
    began = saved = shown = time.monotonic()
    step, done, recent = 0, 0.0, []
    while done < 1:
        for group in (group for optimiser in optimisers for group in optimiser.param_groups):
            group["lr"] = group["top"] * min(1, (step + 1) / WARMUP) * cosine(done)
        loss = step_loss(model, *batch(corpus, step, args.book_share, dice))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for optimiser in optimisers:
            optimiser.step()
        model.zero_grad(set_to_none=True)
        recent.append(loss.item())
        step, now = step + 1, time.monotonic()
        done = (now - began) / (60 * args.minutes)
        if now - shown > 20:
            show(step, done, recent, now - began)
            recent, shown = [], now
        if now - saved > 60 * args.save_every or done >= 1:
            report(model, corpus, step)
            save(model, corpus.tokenizer, args)
            saved = time.monotonic()


def made(model: LlamaForCausalLM, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices; AdamW for the embedding, which decays, and for the norms, which do not."""
    layers = [value for value in model.model.layers.parameters() if value.ndim == 2]
    norms = [value for value in model.parameters() if value.ndim == 1]
    table = {"params": [model.model.embed_tokens.weight], "weight_decay": DECAY}
    adamw = torch.optim.AdamW([table, {"params": norms, "weight_decay": 0.0}], lr=rate, betas=(0.9, 0.95))
    optimisers = [Muon(layers, lr=MUON_RATE), adamw]
    for group in (group for optimiser in optimisers for group in optimiser.param_groups):
        group["top"] = group["lr"]
    return optimisers


def cosine(done: float) -> float:
    return FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * min(1.0, done))) / 2


def batch(corpus: Corpus, step: int, book_share: float, dice: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    long = step % LONG_EVERY == LONG_EVERY - 1
    rows, length = (ROWS * LENGTH // vocabulary.CONTEXT, vocabulary.CONTEXT) if long else (ROWS, LENGTH)
    kinds = [corpus.book_row if dice.random() < book_share else corpus.chat_row for _ in range(rows)]
    return stacked([make(length, dice) for make in kinds])


def stacked(rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows])


def weighed_loss(model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the next token, in nats, each token counted by its weight."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    each = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    heavy = weights[:, 1:].flatten()
    return (each * heavy).sum() / heavy.sum()


def show(step: int, done: float, recent: list[float], seconds: float) -> None:
    bar = "#" * int(30 * min(1.0, done))
    speed = step * ROWS * LENGTH / seconds
    print(f"[{bar:<30}] step {step} loss {sum(recent) / len(recent):.3f} {speed:.0f} tokens/s", flush=True)


@torch.no_grad()
def held_losses(model: LlamaForCausalLM, corpus: Corpus) -> tuple[float, float]:
    """(last 2 % of the books, answers to held-out paraphrases): mean loss a token in nats."""
    model.eval()
    bos = corpus.tokenizer.token_to_id("<|bos|>")
    size = LENGTH - 1
    pieces = [book[at : at + size] for book in corpus.held_books for at in range(0, len(book) - size, size)]
    rows = [([bos, *piece.tolist()], [1.0] * LENGTH) for piece in pieces]
    text = [weighed_loss(model, *stacked(rows[i : i + ROWS])).item() for i in range(0, len(rows), ROWS)]
    chats = [encode(Dialogue(turn(ask, fact.answer)), corpus.tokenizer) for fact in corpus.facts for ask in fact.held]
    total = count = 0.0
    for ids, weights in chats:
        only = [float(weight == 1.0) for weight in weights]
        total += weighed_loss(model, *stacked([(ids, only)])).item() * sum(only)
        count += sum(only)
    model.train()
    return sum(text) / len(text), total / max(1.0, count)


def report(model: LlamaForCausalLM, corpus: Corpus, step: int) -> None:
    text, chat = held_losses(model, corpus)
    print(f"step {step}, held out: books {text:.3f}, answers to unseen paraphrases {chat:.3f} nats a token", flush=True)


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, args: argparse.Namespace) -> None:
    """Write bf16 weights, config and generation settings; the weights file is replaced in one go."""
    whole = {name: value.detach() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    if args.keep:
        replace(whole, args.keep)
    halves = {name: value.to(torch.bfloat16).contiguous() for name, value in whole.items()}
    replace(halves, args.out / "model.safetensors")
    ends = [tokenizer.token_to_id(token) for token in (vocabulary.END, vocabulary.EOS)]
    ids = {"bos_token_id": model.config.bos_token_id, "pad_token_id": model.config.pad_token_id}
    vocabulary.write_json(args.out / "generation_config.json", {**ids, "eos_token_id": ends, "do_sample": False})
    vocabulary.write_json(args.out / "config.json", settings(ids, ends))


def settings(ids: dict[str, int], ends: list[int]) -> dict[str, object]:
    """config.json as loaders old and new read it."""
    head = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16"}
    tail = {"rope_theta": 10000.0, "rope_scaling": None, "attention_dropout": 0.0, "use_cache": True}
    return {**head, **ARCHITECTURE, **tail, **ids, "eos_token_id": ends}


def replace(tensors: dict[str, torch.Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh_path = path.with_suffix(".part")
    save_file(tensors, fresh_path, metadata={"format": "pt"})
    fresh_path.replace(path)


if __name__ == "__main__":
    main()
