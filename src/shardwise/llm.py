"""The library's face: `LLM` for programs that wait for their answers, `AsyncLLM` for those that stream them.

Signatures as vLLM's. Everything is carried out below: text in `engine.front`, tokens in the engine.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Literal, Self

from shardwise.engine.complete import Prompt
from shardwise.engine.contract import TokenEngine
from shardwise.engine.embed import Pooling, check_dimensions, start_pooling
from shardwise.engine.front import Front, Running, sampling_defaults
from shardwise.engine.hub import BUNDLED
from shardwise.engine.likelihood import SCORING, pair, paired
from shardwise.engine.outputs import EmbeddingRequestOutput, RequestOutput, ScoringRequestOutput
from shardwise.engine.prompts import Message, PromptType, conversations, listed
from shardwise.engine.setup import Options, resolve
from shardwise.engine.stream import Stream
from shardwise.engine.text import Tokenizer
from shardwise.engine.together import together
from shardwise.errors import RequestError, UserError
from shardwise.sched.checks import flag, shown, whole
from shardwise.sched.events import Event
from shardwise.sched.pooling import PoolingParams
from shardwise.sched.request import MOST, SEEDS, SamplingParams

Kind = Literal["processes", "threads"]


class _Open:
    """A model that is loaded, whichever way it is asked. A context manager: leaving it ends every rank.

    `model`: a folder, org/name on the hub, or nothing for the small one that comes with shardwise.
    `tensor_parallel_size`: how many ranks it is cut over, any number up to its query heads; `tensor_split`: the proportions,
    one a rank; `enable_expert_parallel` deals out whole experts. `ranks`: as processes of this host, or as threads of this
    process. `memory`: bytes a rank may take, `kv_cache_memory_bytes` those of its cache.
    `max_num_seqs` sequences run at once, `max_num_batched_tokens` go into one step; None leaves these to the engine.
    `quantization`: "int8" or "int4" quantises weights while they are loaded, `quantization_group_size` inputs of 16, 32, 64 or
    128 to a scale. `seed`: the seeds of requests that bring none follow from it, in the order of the requests.
    A UserError says what cannot work. It needs no `__main__` guard.
    """

    def __init__(
        self,
        model: str | Path = BUNDLED,
        *,
        tensor_parallel_size: int | None = None,
        tensor_split: Sequence[float] | None = None,
        enable_expert_parallel: bool = False,
        dtype: str = "auto",
        quantization: str | None = None,
        quantization_group_size: int | None = None,
        kv_cache_dtype: str = "auto",
        device: str = "auto",
        max_model_len: int | None = None,
        max_num_seqs: int | None = None,
        max_num_batched_tokens: int | None = None,
        enable_prefix_caching: bool = True,
        memory: int | None = None,
        kv_cache_memory_bytes: int | None = None,
        threads: int | None = None,
        seed: int | None = None,
        revision: str | None = None,
        load_format: str = "auto",
        ranks: Kind = "processes",
    ) -> None:
        counts = {
            "tensor_parallel_size": tensor_parallel_size, "max_model_len": max_model_len, "max_num_seqs": max_num_seqs,
            "max_num_batched_tokens": max_num_batched_tokens, "memory": memory,
            "kv_cache_memory_bytes": kv_cache_memory_bytes, "threads": threads,
            "quantization_group_size": quantization_group_size,
        }  # fmt: skip
        given = {name: None if value is None else whole(name, value, 1, SEEDS) for name, value in counts.items()}
        if not isinstance(model, str | Path):
            raise UserError(f"model is {shown(model)}; it takes a folder or org/name; leave it out for the one that is bundled")
        if ranks not in ("processes", "threads"):
            raise UserError(f"ranks is {shown(ranks)}; it takes 'processes' or 'threads'")
        options = Options(
            model=str(model),
            tp=given["tensor_parallel_size"],
            shares=_shares(tensor_split),
            dtype=dtype,
            kv_cache_dtype=kv_cache_dtype,
            device=device,
            load_format=load_format,
            memory=given["memory"],
            max_model_len=given["max_model_len"],
            threads=given["threads"],
            revision=revision,
            max_num_seqs=given["max_num_seqs"],
            max_num_batched_tokens=given["max_num_batched_tokens"],
            enable_prefix_caching=flag("enable_prefix_caching", enable_prefix_caching),
            cache_memory=given["kv_cache_memory_bytes"],
            expert_parallel=flag("enable_expert_parallel", enable_expert_parallel),
            quantization=quantization,
            quantization_group=given["quantization_group_size"],
        )
        self._begin(options, ranks, seed)

    def _begin(self, options: Options, ranks: Kind, seed: int | None) -> None:
        from shardwise.engine.engine import Engine  # which loads what a rank's messages are made of

        if seed is not None:
            whole("seed", seed, 0, SEEDS - 1)
        setup = resolve(options)
        core = Engine(setup, ranks)
        try:
            self._hold(core, seed)
        except BaseException:
            core.close()
            raise

    @classmethod
    def on(cls, core: TokenEngine, seed: int | None = None) -> Self:
        """One on an engine that is there already, or on a fake of one. Closing it closes the engine."""
        self = cls.__new__(cls)
        self._hold(core, seed)
        return self

    def _hold(self, core: TokenEngine, seed: int | None) -> None:
        self._front = Front(core)
        self._defaults = sampling_defaults(core.setup.folder)
        self._seeds = None if seed is None else Random(seed)
        self._lock = threading.Lock()
        # Whoever drops it, or ends the program, need not have closed it.
        self._close = weakref.finalize(self, core.close)

    def close(self) -> None:
        """Ends every rank. Requests under way, on other threads, end with an error. Closing it again changes nothing."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer: `encode` and `decode`."""
        return self._front.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What the checkpoint's generation_config.json recommends, else vLLM's defaults."""
        return SamplingParams(**self._defaults)

    def _seeded(self, params: SamplingParams) -> SamplingParams:
        if self._seeds is None or params.seed is not None:
            return params
        with self._lock:
            return replace(params, seed=self._seeds.randrange(SEEDS))


class LLM(_Open):
    __doc__ = f"Answers many prompts at once, and waits for all of them. Safe to share between threads.\n\n{_Open.__doc__}"

    def generate(
        self,
        prompts: PromptType | Sequence[PromptType],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        priority: int | Sequence[int] = 0,
    ) -> list[RequestOutput]:
        """One output a prompt, in the order of the prompts, however many there are.

        A prompt is text, token ids, or a dict with "prompt" or "prompt_token_ids"; `sampling_params` and `priority` (lower
        is sooner) are one for all or a list of the same length. `use_tqdm` shows a bar on a terminal.
        RequestError, which names the prompt, before anything runs or where one can never run; ShardwiseError where one
        fails. Ctrl-C and errors abort what was asked for in this call; the LLM stays usable.
        """
        many = listed(prompts)
        wanted = self._params(sampling_params, len(many))
        order = self._priorities(priority, len(many))
        return self._answers([self._front.prompt(one, f"prompt {n}") for n, one in enumerate(many)], wanted, order, use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        priority: int | Sequence[int] = 0,
    ) -> list[RequestOutput]:
        """As `generate`, of one conversation or several, by the model's chat template. See `ChatTemplate.render`."""
        many = conversations(messages)
        wanted = self._params(sampling_params, len(many))
        order = self._priorities(priority, len(many))
        options = {
            "add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message,
            "tools": tools, "variables": chat_template_kwargs,
        }  # fmt: skip
        asked = [self._front.chat(one, f"conversation {n}", **options) for n, one in enumerate(many)]
        return self._answers(asked, wanted, order, use_tqdm)

    def embed(
        self,
        prompts: PromptType | Sequence[PromptType],
        use_tqdm: bool = True,
        *,
        pooling: Literal["last", "mean"] = "last",
        normalize: bool = True,
        dimensions: int | None = None,
        priority: int | Sequence[int] = 0,
    ) -> list[EmbeddingRequestOutput]:
        """One vector a prompt, in the order of the prompts: `outputs.embedding` of each.

        It is the final hidden state, after the last norm, of the last token, or the mean of all tokens' ("mean"); its first
        `dimensions` numbers, None for all; divided by its length where `normalize`. Errors as of `generate`.
        """
        many, params = listed(prompts), PoolingParams(pooling)
        check_dimensions(dimensions, self._front.core.setup.layout.model.hidden)
        flag("normalize", normalize)
        order = self._priorities(priority, len(many))
        asked = [self._front.prompt(one, f"prompt {n}") for n, one in enumerate(many)]

        def start(n: int, sink: Callable[[Event], None]) -> Pooling:
            return start_pooling(self._front.core, asked[n], params, sink, priority=order[n])

        done = together(self._front.core, len(many), start, use_tqdm)
        return [one.output(normalize=normalize, dimensions=dimensions) for one in done]

    def score(
        self,
        text_1: str | Sequence[str],
        text_2: str | Sequence[str],
        use_tqdm: bool = True,
        *,
        priority: int | Sequence[int] = 0,
    ) -> list[ScoringRequestOutput]:
        """How likely each `text_2` is after its `text_1`, one `text_1` for all or one for each: `outputs.score`.

        It is the mean log-probability of the tokens of `text_2` given `text_1` and those before them, in nats a token: at most
        0, and higher is likelier. (vLLM's is the similarity that a model trained for it gives; its arguments are these.) Each
        text is tokenised by itself. Errors as of `generate`.
        """
        pairs = paired(_texts("text_1", text_1), _texts("text_2", text_2))
        asked = [pair(self._front.tokenizer, a, b, f"pair {n}") for n, (a, b) in enumerate(pairs)]
        order = self._priorities(priority, len(asked))
        outputs = self._answers([one.prompt for one in asked], [SCORING] * len(asked), order, use_tqdm)
        return [one.output(output) for one, output in zip(asked, outputs, strict=True)]

    def _priorities(self, given: int | Sequence[int], count: int) -> list[int]:
        return _each("priority", given, count, lambda name, value: whole(name, value, -MOST, MOST))

    def _params(self, given: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
        def checked(name: str, value: object) -> SamplingParams:
            if not isinstance(value, SamplingParams):
                raise RequestError(f"{name} is {shown(value)}; it takes SamplingParams")
            return value

        return _each("sampling_params", self.get_default_sampling_params() if given is None else given, count, checked)

    def _answers(
        self, prompts: list[Prompt], params: list[SamplingParams], priority: list[int], shows: bool
    ) -> list[RequestOutput]:
        def start(n: int, sink: Callable[[Event], None]) -> Running:
            return self._front.start(prompts[n], self._seeded(params[n]), sink, priority=priority[n])

        return [one.transcript.output() for one in together(self._front.core, len(prompts), start, shows)]


def _each(name: str, given: Any, count: int, checked: Any) -> list[Any]:
    """One value for all, or a list of as many, each `checked`."""
    if not isinstance(given, list | tuple):
        return [checked(name, given)] * count
    if len(given) != count:
        raise RequestError(f"{name} is a list of {len(given)} for {count} prompts; give one for all, or as many")
    return [checked(f"{name}[{n}]", value) for n, value in enumerate(given)]


def _texts(name: str, given: object) -> list[str]:
    """One text or several; RequestError for anything else."""
    many = [given] if isinstance(given, str) else given
    if not isinstance(many, list | tuple) or not all(isinstance(text, str) for text in many):
        raise RequestError(f"{name} is {shown(given)}; it takes a text, or a list of texts")
    return list(many)


def _shares(given: object) -> tuple[float, ...] | None:
    if given is None:
        return None
    numbers = isinstance(given, list | tuple) and all(isinstance(s, int | float) and not isinstance(s, bool) for s in given)
    if not isinstance(given, list | tuple) or not given or not numbers:
        raise UserError(f"tensor_split is {shown(given)}; it takes a list of numbers, one a rank, as [3, 1]")
    return tuple(float(share) for share in given)


class AsyncLLM(_Open):
    __doc__ = f"Streams answers on an event loop, any number at once. Loading blocks.\n\n{_Open.__doc__}"

    def _hold(self, core: TokenEngine, seed: int | None) -> None:
        super()._hold(core, seed)
        self._numbers = itertools.count(1)
        self._streams: weakref.WeakValueDictionary[str, Stream] = weakref.WeakValueDictionary()

    def generate(
        self,
        prompt: PromptType,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
    ) -> Stream:
        """The outputs of one prompt as they come: `async for output in llm.generate(...)`.

        Each holds all so far, or what `sampling_params.output_kind` says. Leaving the loop or cancelling the task aborts it.
        """
        return self._stream(partial(self._front.prompt, prompt), sampling_params, request_id, priority)

    def chat(
        self,
        messages: Sequence[Message],
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        priority: int = 0,
    ) -> Stream:
        """As `generate`, of a conversation, by the model's chat template."""
        prepare = partial(
            self._front.chat, messages, add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message, tools=tools, variables=chat_template_kwargs,
        )  # fmt: skip
        return self._stream(prepare, sampling_params, request_id, priority)

    def abort(self, request_id: str) -> None:
        """Ends the request of that id: its stream's last output says "abort". Ids that are not known are ignored."""
        if (stream := self._streams.get(request_id)) is not None:
            stream.cancel()

    def _stream(self, prepare: Any, params: SamplingParams | None, request_id: str | None, priority: int) -> Stream:
        if params is not None and not isinstance(params, SamplingParams):
            raise RequestError(f"sampling_params is {shown(params)}; it takes SamplingParams")
        name = str(next(self._numbers)) if request_id is None else request_id
        if (other := self._streams.get(name)) is not None and not other.closed:
            raise RequestError(f"request_id {name!r} is that of a request under way; give another one")
        wanted = self._seeded(self.get_default_sampling_params() if params is None else params)
        stream = Stream(self._front, prepare, wanted, whole("priority", priority, -MOST, MOST), name)
        self._streams[name] = stream
        return stream
