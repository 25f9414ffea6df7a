"""How a `Setup` travels: as plain values, of which it is made again elsewhere: to decide it twice measures memory twice."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from shardwise.engine.memory import Bound
from shardwise.engine.setup import Given, Setup
from shardwise.engine.supervise import FAIL_FAST, Policy
from shardwise.sched.limits import Limits
from shardwise.spec.config import read_model
from shardwise.spec.formats import Grouped
from shardwise.spec.layout import Layout, Shares
from shardwise.spec.mesh import Mesh
from shardwise.spec.requantised import quantised_as


class Boot(msgspec.Struct, frozen=True, tag=True):
    """A `Setup` as plain values, the bounds of the queue, and what a loss leads to. `config` is the model's config.json as JSON
    text: msgpack has no whole numbers beyond 64 bits. The layout is made again from the same numbers."""

    name: str
    folder: str
    config: str
    tp: int
    shares: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]
    dtype: str
    kv_dtype: str
    activations: str | None
    expert_parallel: bool
    device: str
    load_format: str
    context: int
    bound: Bound
    pages: tuple[int, ...]
    limits: Limits
    threads: int
    memory: int | None
    quantization: tuple[str, int] | None = None
    cores: tuple[tuple[int, ...], ...] = ()
    given: Given = Given()
    queue: int | None = None
    queue_tokens: int | None = None
    policy: Policy = FAIL_FAST

    @staticmethod
    def of(setup: Setup, queue: int | None = None, queue_tokens: int | None = None, policy: Policy = FAIL_FAST) -> Boot:
        """Everything that it takes to have the same setup elsewhere."""
        layout = setup.layout
        return Boot(
            name=setup.name,
            folder=str(setup.folder),
            config=json.dumps(setup.config),
            tp=layout.mesh.tp,
            shares=(layout.shares.attention, layout.shares.mlp, layout.shares.vocab),
            dtype=layout.dtype,
            kv_dtype=layout.kv_dtype,
            activations=layout.activations,
            expert_parallel=layout.expert_parallel,
            device=setup.device,
            load_format=setup.load_format,
            context=setup.context,
            bound=setup.bound,
            pages=setup.pages,
            limits=setup.limits,
            threads=setup.threads,
            memory=setup.memory,
            quantization=(setup.quantization.kind, setup.quantization.size) if setup.quantization else None,
            cores=setup.cores,
            given=setup.given,
            queue=queue,
            queue_tokens=queue_tokens,
            policy=policy,
        )

    def setup(self) -> Setup:
        """The setup, equal to the one that it was made of."""
        config = json.loads(self.config)
        mesh, shares = Mesh(tp=self.tp), Shares(*self.shares)
        form = Grouped(*self.quantization) if self.quantization else None
        model = quantised_as(read_model(config), form)
        return Setup(
            name=self.name,
            folder=Path(self.folder),
            config=config,
            layout=Layout(model, mesh, shares, self.dtype, self.kv_dtype, self.expert_parallel, self.activations),
            device=self.device,
            load_format=self.load_format,
            context=self.context,
            bound=self.bound,
            pages=self.pages,
            limits=self.limits,
            threads=self.threads,
            memory=self.memory,
            quantization=form,
            cores=self.cores,
            given=self.given,
        )
