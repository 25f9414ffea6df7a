"""transformers as the reference: the same checkpoint in the same dtype, its own code on one device. An optional import.

Whole prompts at once and `generate` after them: nothing of what is to be verified has a part in it.
"""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from shardwise.engine.setup import Setup
from shardwise.errors import ShardwiseError, UserError
from shardwise.spec.model import ropes
from shardwise.verify.drive import Advance
from shardwise.verify.trace import KEPT_BYTES, Text, Trace

if TYPE_CHECKING:
    import torch


class Transformers:
    """A reference. It loads the model for as long as it computes, and no longer."""

    def __init__(self) -> None:
        """UserError where it is not installed."""
        if importlib.util.find_spec("transformers") is None:
            raise UserError("--against transformers: it is not installed; `pip install transformers` does that")
        from importlib.metadata import version

        self.name = f"transformers {version('transformers')}"
        self.greedy = True

    def traces(self, setup: Setup, texts: Sequence[Text], limit: int, stride: int, advance: Advance) -> list[Trace]:
        """What it makes of each text and of the `limit` tokens that it then takes for the likeliest."""
        if setup.load_format != "auto":
            raise UserError(
                f"--against transformers needs the checkpoint's weights; leave out --load-format {setup.load_format}"
            )
        if setup.quantization:
            raise UserError(
                "--against transformers compares what a checkpoint holds; leave out --quantization, or --against transformers"
            )
        found, model = [], None
        # Rope that scales with every token keeps state from one text to the next: it is read anew for each.
        anew = any(rope.dynamic for rope in ropes(setup.layout.model))
        try:
            for text in texts:
                model = self._load(setup) if model is None or anew else model
                found.append(_traced(model, text, limit, stride))
                advance(len(found[-1].places))
        finally:
            del model
            gc.collect()
        return found

    def _load(self, setup: Setup) -> Any:
        try:
            import torch
            import transformers as module

            transformers: Any = module
            transformers.logging.set_verbosity_error()
            transformers.logging.disable_progress_bar()
            model = transformers.AutoModelForCausalLM.from_pretrained(
                setup.folder,
                dtype=getattr(torch, setup.layout.dtype),
                attn_implementation="eager",
                local_files_only=True,
                trust_remote_code=False,
            )
            # What the checkpoint recommends for sampling would change what it takes for the likeliest.
            model.generation_config = transformers.GenerationConfig(do_sample=False, pad_token_id=0)
            return model.to(setup.device).eval()
        except (ImportError, OSError, ValueError, KeyError, RuntimeError) as error:
            # Its own words go on for paragraphs.
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ShardwiseError(f"{self.name} cannot load {setup.name}: {first}") from error


def _traced(model: Any, text: Text, limit: int, stride: int) -> Trace:
    import torch

    trace = Trace(len(text.ids), list(text.ids))
    ids = torch.tensor([text.ids], device=model.device)
    with torch.inference_mode():
        # The prompt first: rope that has scaled with more tokens would stay as it is.
        last = None
        for piece in _prompt(model, ids):
            for row in piece:
                if last is not None:
                    trace.put(last.cpu().numpy(), None, stride)
                last = row
        steps = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=limit,
            output_logits=True,
            return_dict_in_generate=True,
        )
        trace.tokens += steps.sequences[0, len(text.ids) :].tolist()
        # Its own first logits are those of the prompt's last place once more.
        for row in (last, *(step[0].float() for step in steps.logits[1:])):
            assert row is not None
            trace.put(row.cpu().numpy(), None, stride)
    return trace


def _prompt(model: Any, ids: torch.Tensor) -> Iterator[torch.Tensor]:
    """The logits of all places, [rows, vocabulary] in float32; of a long prompt in several forwards, so that they fit."""
    import torch

    count = ids.shape[1]
    rows = max(1, KEPT_BYTES // (4 * model.config.get_text_config().vocab_size))
    if count <= rows:
        yield model(ids, use_cache=False).logits[0].float()
        return
    for start in range(0, count, rows):
        places = torch.arange(start, min(start + rows, count), device=ids.device)
        yield model(ids, use_cache=False, logits_to_keep=places).logits[0].float()
