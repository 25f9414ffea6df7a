"""Supervisor, ProcessRanks, Core, Scheduler, Journal and Draws as they are, on a cluster that is none; and their clients.

All that must hold is checked here, at any time and in the end: see the words behind each `need`.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from shardwise.engine.core import Core
from shardwise.engine.journal import Entry
from shardwise.engine.process_ranks import ProcessRanks
from shardwise.engine.ranks import Formed
from shardwise.engine.setup import Options, Setup, resolve
from shardwise.engine.supervise import SETTLE_S, Policy
from shardwise.errors import SHRUNK, LossesSpent, RankLost, RequestError, ShardwiseError, UserError
from shardwise.sched.events import Emitted, Ended, Event, Scored
from shardwise.sched.limits import Limits
from shardwise.sched.request import SamplingParams
from shardwise.sched.step import Draw, Edit
from tests.checkpoints import BASE
from tests.engine.recovery.cluster import Cluster, need
from tests.engine.recovery.worker import POISON, ROOT, drawn, key_of, score, seen

SERVES_S = 40.0
"""So long after the last fault a group serves, whatever came before: longer than any start, forming, or try to grow."""

ENDS_S = 60.0
"""So long after the last fault all requests have ended."""


@dataclass(frozen=True)
class Parts:
    """What is tested: as it is, or with a bug."""

    ranks: type[ProcessRanks] = ProcessRanks
    core: type[Core] = Core
    policy: type[Policy] = Policy


@cache
def _setup(size: int) -> Setup:
    with TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps({"model_type": "llama", **BASE}), encoding="utf-8")
        made = resolve(Options(model=folder, tp=size, load_format="dummy", device="cpu"))
    # Of a CPU it is asked at every forming how many processors there are.
    return replace(made, device="cuda", cores=())


@dataclass(frozen=True)
class Machine:
    """What there is room for: `pages` by the number of ranks; groups of fewer than `least` are refused."""

    size: int
    pages: dict[int, int]
    least: int
    limits: Limits
    context: int

    def setup(self, size: int) -> Setup:
        return replace(_setup(size), pages=(self.pages[size],), limits=self.limits, context=self.context)

    def cut(self, _: Setup, shares: Sequence[float]) -> Setup:
        if len(shares) < self.least:
            raise UserError(f"{len(shares)} ranks have no room")
        return self.setup(len(shares))


@dataclass
class Client:
    """One request, as it is asked and as it is answered. `raises`: its prompt makes every rank raise."""

    entry: Entry
    told: list[int] = field(default_factory=list)
    done: list[bool] = field(default_factory=list)
    ended: Ended | None = None
    scored: int = 1
    left: bool = False

    def __post_init__(self) -> None:
        params = self.entry.params
        assert isinstance(params, SamplingParams)
        self.params = params
        self.told, self.done = [0] * params.n, [False] * params.n
        keys = [ROOT]
        for token in self.entry.prompt:
            keys.append(key_of(keys[-1], token))
        self.keys = keys[1:]
        self.answers = [list(self._answer(choice)) for choice in range(params.n)] if self.entry.limit else []

    @property
    def raises(self) -> bool:
        return POISON in self.entry.prompt

    def _answer(self, choice: int) -> Iterator[tuple[int, str | None]]:
        """What a choice is given where nothing fails, token by token, with why it ends."""
        params, keys, counts = self.params, list(self.keys), Counter[int]()
        counted = bool(params.presence_penalty or params.frequency_penalty)
        for count in range(1, self.entry.limit + 1):
            ends = self.entry.ends if count <= params.min_tokens else ()
            written = tuple(counts.items()) if counted else ()
            token = _drawn(seen(keys), self.entry.seed, choice, len(keys), written, ends)
            finish = "length" if count == self.entry.limit else None
            if token in self.entry.ends and count > params.min_tokens:
                finish = "stop"
            yield token, finish
            if finish:
                return
            counts[token] += 1
            keys.append(key_of(keys[-1], token))

    def take(self, event: Event, world: World) -> None:
        need(self.ended is None, "after its end:", event)
        if isinstance(event, Emitted):
            need(not self.done[event.choice], "after the end of its choice:", event)
            token, finish = self.answers[event.choice][self.told[event.choice]]
            need(event.chosen.token == token, f"token {self.told[event.choice]} is not {token}:", event, self.entry.prompt)
            need(event.finish == finish, "finish", finish, event)
            self.told[event.choice] += 1
            self.done[event.choice] = event.finish is not None
        elif isinstance(event, Scored):
            for chosen in event.scores:
                key = self.keys[self.scored]
                wanted = self.entry.prompt[self.scored], score(key)
                need((chosen.token, chosen.logprob) == wanted, "score", self.scored, chosen)
                self.scored += 1
        elif isinstance(event, Ended):
            self.ended = event
            self._check_end(event, world)

    def _check_end(self, event: Ended, world: World) -> None:
        if event.error is None:
            need(self.left or not self.raises, "a request ended well that fails every step:", self.entry.number)
            need(self.left or all(self.done), "ended early:", event, self.told)
            needed = self.params.prompt_logprobs is not None and not self.left
            need(not needed or self.scored == len(self.entry.prompt), "scores", self.scored, len(self.entry.prompt))
        elif event.error.startswith(SHRUNK):
            need(event.unfit and world.shrank, "no room, and nothing has shrunk:", event)
        elif world.over is None or event.error != str(world.over):
            planted = self.raises and "out of range" in event.error
            need(planted or event.error in world.cluster.raised, "fails for what it did not do:", event)


def _drawn(
    context: int, seed: int, choice: int, position: int, written: tuple[tuple[int, int], ...], barred: Sequence[int]
) -> int:
    return drawn(context, Draw(0, 1.0, seed, choice, edit=Edit(written=written, barred=tuple(barred))), position)


def observed(ranks: type[ProcessRanks], world: World) -> type[ProcessRanks]:
    """The class with what is checked of each action."""

    class Observed(ranks):  # type: ignore[valid-type, misc]
        def _serve(self) -> None:
            world.tries.clear()
            super()._serve()

        def _do(self, actions: Sequence[Any]) -> None:
            for action in actions:
                world.observe(self._supervisor, action)
                super()._do((action,))

    return Observed


class World:
    """One engine's life, from its start until all is quiet, or it has given up. `over`: why."""

    def __init__(self, machine: Machine, policy: Policy, cluster: Cluster, parts: Parts) -> None:
        self.machine, self.policy, self.cluster, self.parts = machine, policy, cluster, parts
        self.clients: dict[int, Client] = {}
        self.over: ShardwiseError | None = None
        self.shrank = False
        self.losses: list[float] = []
        self.judged = 0
        self.epochs: dict[int, int] = {}
        self.last_event = 0.0
        self.steps = 0
        self.planned = False
        self.seated: dict[int, int] = {}
        self.tries = Counter[int]()
        self.ranks: ProcessRanks | None = None
        self.core: Core | None = None

    # --- the engine ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """`Engine._run`, without threads."""
        with contextlib.redirect_stderr(io.StringIO()):
            try:
                self._serve()
            except ShardwiseError as error:
                self.over = error
                if self.core is not None:
                    self.core.journal.fail(str(error))
        self._check_over()

    def _serve(self) -> None:
        cluster = self.cluster
        setup = self.machine.setup(self.machine.size)
        watched = observed(self.parts.ranks, self)
        policy: Any = self.parts.policy(self.policy.on_loss, self.policy.losses, self.policy.within_s, self.policy.spares)
        fakes: dict[str, Any] = {"started": cluster, "lines": cluster}
        self.ranks = ranks = watched(setup, policy=policy, clock=cluster.clock, cut=self.machine.cut, **fakes)
        self.core = core = self.parts.core(ranks.setup, ranks, cluster.clock)
        self._resized(ranks.setup)
        while True:
            while cluster.orders:
                cluster.orders.popleft()()
            if ranks.whole:
                core.issue()
            if self._quiet():
                break
            found = ranks.wait(0)
            if isinstance(found, Formed):
                self._resized(found.setup)
                core.resume(ranks, found.setup, found.failed)
            elif found:
                self.steps += 1
                cluster.note("done", found[0])
                fresh = cluster.epoch_of[found[0]] == cluster.wanted
                need(fresh, "step", found[0], "of epoch", cluster.epoch_of[found[0]], "is taken in epoch", cluster.wanted)
                core.apply(*found)
        self._check_quiet()

    def _resized(self, setup: Setup) -> None:
        self.shrank = self.shrank or setup.pages[0] < self.machine.pages[self.machine.size]

    # --- clients ------------------------------------------------------------------------------------------------------

    def submit(self, entry: Entry, later_s: float) -> None:
        """A request comes; it is taken in a little later, as from another thread."""
        core = self.core
        if core is None:
            self.cluster.after(0.5, lambda: self.cluster.order(lambda: self.submit(entry, later_s)))
            return
        try:
            core.scheduler.check(core.request(entry))
        except RequestError:
            return
        client = self.clients[entry.number] = Client(entry)
        entry.sink = lambda event: self._take(client, event)
        self.cluster.after(later_s, lambda: self.cluster.order(lambda: core.add(entry)))

    def abort(self, number: int) -> None:
        if number in self.clients and self.core is not None:
            self.clients[number].left = True
            self.core.abort(number)

    def reshard(self, size: int) -> None:
        """`Engine._recut`."""
        ranks = self.ranks
        if ranks is None or not ranks.whole or self.core is None:
            return
        with contextlib.suppress(UserError):
            setup = self.machine.cut(ranks.setup, (1.0,) * size)
            self.planned = True
            self.last_event = self.cluster.now
            ranks.reform(setup)

    def _take(self, client: Client, event: Event) -> None:
        self.last_event = self.cluster.now
        self.cluster.note(client.entry.number, event.chosen.token if isinstance(event, Emitted) else type(event).__name__)
        client.take(event, self)

    # --- what holds at any time ---------------------------------------------------------------------------------------

    def observe(self, supervisor: Any, action: Any) -> None:
        """An action, before it is done."""
        cluster, name = self.cluster, type(action).__name__
        cluster.note(name, *(getattr(action, each) for each in ("process", "epoch", "seats") if hasattr(action, each)))
        if name == "Kill":
            worker = cluster.lives[action.process].worker
            spare = worker.epoch < 0 and action.process not in self.epochs
            need(
                worker.doomed or spare or self.planned or self._slipped(),
                "process",
                action.process,
                "is killed, which did nothing",
            )
        elif name == "Form":
            self._observe_form(supervisor, action, supervisor.loss)
        elif name == "GiveUp" and supervisor.loss is not None:
            self._count_loss(supervisor.loss)

    def _slipped(self) -> bool:
        return "slip" in self.cluster.plan.kinds

    def _observe_form(self, supervisor: Any, form: Any, loss: Any) -> None:
        cluster = self.cluster
        self.planned = False
        if loss is not None:
            self._count_loss(loss)
            lost = self._recent()
            need(lost <= self.policy.losses, lost, "losses were mended in", self.policy.within_s, "s")
            need(self.policy.on_loss != "exit", "a loss was mended that is to end it")
            faults = sum(cluster.lives[process].worker.faults for process in self.epochs)
            need(supervisor.served or loss.reason not in cluster.raised, "the first group cannot be formed, and is again")
            need(self.judged <= faults, self.judged, "losses of", faults, "faults")
        seats = form.seats
        need(len(set(seats)) == len(seats) == len(form.places) > 0, "a process in two seats:", form)
        need(list(form.places) == sorted(set(form.places)), "places in disorder:", form)
        need(max(form.places) < supervisor.size, "a place beyond the group:", form)
        self._observe_tries(form)
        for process in seats:
            life = cluster.lives[process]
            need(not life.heard_of_end and not life.killed, "process", process, "is known to be dead:", form)
            need(self.epochs.get(process, -1) < form.epoch, "epochs do not rise:", form)
            need(process not in supervisor._spares, "process", process, "has a seat, and is a spare")
            self.epochs[process] = form.epoch
        need(form.epoch == max(self.epochs.values()), "epochs do not rise:", form)

    def _observe_tries(self, form: Any) -> None:
        """No place is tried with one process after the other, while others could go on."""
        seated = dict(zip(form.places, form.seats, strict=True))
        new = [place for place, process in seated.items() if self.seated.get(place) != process]
        self.tries.update(new)
        kept = len(new) < len(seated)
        worst = max((self.tries[place] for place in new), default=0)
        need(not kept or worst <= 2 or self.machine.least > 1, "a place is tried", worst, "times:", form)
        self.seated = seated

    def _count_loss(self, loss: Any) -> None:
        """Of the budget only where it was more than an error of a step, and did not come together with the last one."""
        self.judged += 1
        if loss.lone:
            return
        if not self.losses or self.cluster.now - self.losses[-1] > SETTLE_S:
            self.losses.append(self.cluster.now)

    def _recent(self) -> int:
        return sum(when > self.cluster.now - self.policy.within_s for when in self.losses)

    # --- the end ------------------------------------------------------------------------------------------------------

    @property
    def last(self) -> float:
        return max(self.cluster.last_fault, self.last_event)

    def _quiet(self) -> bool:
        """Whether all that was planned has happened, and a while has passed."""
        cluster, plan = self.cluster, self.cluster.plan
        after = max(self.last, plan.until, *plan.jumps, 0.0)
        if cluster.now < after + plan.patience_s + 0.5 or any(client.ended is None for client in self.clients.values()):
            need(self.core is None or cluster.now < after + ENDS_S, "requests do not end", self._open())
            return False
        assert self.ranks is not None
        return self.ranks.whole or cluster.now > after + SERVES_S

    def _open(self) -> list[int]:
        return [number for number, client in self.clients.items() if client.ended is None]

    def _check_quiet(self) -> None:
        ranks, cluster = self.ranks, self.cluster
        assert ranks is not None and self.core is not None
        supervisor: Any = ranks._supervisor
        need(not ranks._busy, "nothing is asked, and ranks are taken to be busy")
        need(ranks.whole, "the group does not serve, long after the last fault")
        need(ranks.mending is None, "it serves, and says that it does not:", ranks.mending)
        need(not self.core.journal.entries and not self.core.in_flight, "something is open still")
        seated = set(supervisor.seats)
        for process in supervisor.seats:
            worker = cluster.lives[process].worker
            need(worker.alive and worker.epoch == supervisor.epoch, "process", process, "is not of the group")
        spares = set(supervisor._spares)
        wanted = range(self.policy.spares, self.policy.spares + supervisor.size - len(supervisor.seats) + 1)
        need(len(spares) in wanted or cluster.faults > self.policy.losses, "spares", spares)
        stray = set(cluster.alive) - seated - spares
        need(not stray, "processes run that are of no use:", stray)
        size = len(supervisor.seats)
        need(size == supervisor.size or supervisor._grow is not None, "a smaller group that never grows")
        need(cluster.meetings == 0, "places to meet are left")
        need(ranks.setup.layout.mesh.size == size, "ranks", size, ranks.setup.layout.mesh.size)
        need(len(ranks.incidents) <= self.judged, "incidents", ranks.incidents)

    def _check_over(self) -> None:
        """Where it has given up: that it had to."""
        if self.over is None:
            return
        cluster, error = self.cluster, self.over
        for client in self.clients.values():
            open_ = self.core is not None and client.entry.number in self.core.journal.entries
            need(not open_, "no end was told", client.entry.number)
        need(cluster.faults > 0 or self._poisoned(), "it gave up, and nothing was wrong:", error)
        if isinstance(error, LossesSpent):
            need(self._recent() > self.policy.losses, "the budget is not spent:", self.losses)
        elif self.policy.on_loss != "exit":
            need(self.core is None, "it gave up against its policy:", repr(error))
        need(isinstance(error, RankLost | LossesSpent | UserError), repr(error))

    def _poisoned(self) -> bool:
        return any(client.raises for client in self.clients.values())
