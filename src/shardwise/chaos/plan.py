"""Which faults, when, to whom: a plan is a value, made from a seed alone, kept as JSON, and repeated from it.

It knows no processes: victims are numbers, which whoever carries it out takes modulo the ranks that there are.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from shardwise.errors import UserError

PHASES = {
    "prefill": "requests were sent, none has a token yet",
    "decode": "half of the streams have some tokens",
    "collective": "the same, and the rank sleeps in a wait for others",
    "idle": "nothing is asked; the requests come right after it",
    "start": "the server is starting",
    "recovery": "another rank was killed up to half a second ago",
}
"""What each aims at."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is done. `fatal`: it takes the process that holds the connections, so that clients are cut; what has to hold is that
    nothing is left and that the next start works."""

    text: str
    phases: tuple[str, ...]
    fatal: bool = False


FAULTS = {
    "none": Fault("nothing: what is measured with the others has to be fine here", ("decode",)),
    "kill": Fault("SIGKILL to a rank", ("prefill", "decode", "collective", "idle", "start", "recovery")),
    "stop": Fault("SIGSTOP to a rank", ("prefill", "decode", "collective", "idle")),
    "stall": Fault("SIGSTOP to a rank, SIGCONT 2.5 s later", ("prefill", "decode")),
    "spin": Fault("a rank's main thread goes round and round at one instruction", ("prefill", "decode")),
    "starve": Fault("a rank gets processor time that nobody else wants, for 2.5 s", ("prefill", "decode")),
    "double": Fault("SIGKILL to two ranks, 0 to 500 ms apart", ("prefill", "decode", "idle")),
    "engine": Fault("SIGKILL to the engine's process", ("prefill", "decode", "idle")),
    "front": Fault("SIGKILL to a further front: its own clients are cut, others are not", ("prefill", "decode")),
    "parent": Fault("SIGKILL to the process that was started, alone", ("decode", "idle", "start"), fatal=True),
    "group": Fault("SIGKILL to the process group of that", ("decode", "idle", "start"), fatal=True),
    "all": Fault("SIGKILL to every process", ("decode", "idle", "start", "recovery"), fatal=True),
}

DEFAULT = ("kill", "stop", "double", "engine", "parent", "all")
CALM = "none"
STALL_S = 2.5
"""How long a rank stands still in `stall` and `starve`."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One fault. `victim` and `second` are any numbers; `delay` in [0, 1) is when within the phase; `gap_s` between the two
    faults of `double` and of the phase `recovery`, or from a fault while idle to the requests; `turn`: which requests."""

    number: int
    fault: str
    phase: str
    victim: int
    second: int
    delay: float
    gap_s: float
    turn: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Trials in their order. `tokens`: the longest answer that is asked for; it shapes the requests, as the seed does."""

    seed: int
    clients: int
    tokens: int
    trials: tuple[Trial, ...]


def plan(seed: int, count: int, faults: Sequence[str], clients: int, tokens: int, phases: Sequence[str] = ()) -> Plan:
    """`count` trials, in shares as even as they can be of each fault, and of each of its phases; before them one without a
    fault. `phases` restricts them. UserError for names that are none, or where nothing is left."""
    chosen: list[tuple[str, tuple[str, ...]]] = []
    for name in _known(faults, FAULTS, "fault"):
        left = tuple(phase for phase in FAULTS[name].phases if not phases or phase in _known(phases, PHASES, "phase"))
        if left:
            chosen.append((name, left))
    if not chosen:
        raise UserError(f"none of {', '.join(faults)} has a phase of {', '.join(phases)}")
    draws = random.Random(seed)
    cases = []
    for n in range(count):
        name, left = chosen[n % len(chosen)]
        cases.append((name, left[n // len(chosen) % len(left)]))
    draws.shuffle(cases)
    trials = [_trial(n, fault, phase, draws) for n, (fault, phase) in enumerate([(CALM, "decode"), *cases])]
    return Plan(seed, clients, tokens, tuple(trials))


def _trial(number: int, fault: str, phase: str, draws: random.Random) -> Trial:
    victim, second = draws.randrange(5040), draws.randrange(5040)  # divisible by every number of ranks up to 10: no favourites
    return Trial(
        number, fault, phase, victim, second, round(draws.random(), 4), round(draws.uniform(0, 0.5), 4), draws.randrange(5040)
    )


def _known(names: Sequence[str], table: Mapping[str, object], what: str) -> Sequence[str]:
    for name in names:
        if name not in table:
            raise UserError(f"{name!r} is no {what}; there are {', '.join(table)}")
    return names


# --- as JSON ----------------------------------------------------------------------------------------------------------


def described(found: Plan) -> dict[str, Any]:
    """The plan as JSON has it."""
    return asdict(found)


def replayed(text: str, where: str) -> Plan:
    """The plan of a file: one of its own, or within the results of a run. UserError where it is none."""
    try:
        given = json.loads(text)
        given = given.get("plan", given)
        trials = tuple(Trial(**{field.name: each[field.name] for field in fields(Trial)}) for each in given["trials"])
        found = Plan(int(given["seed"]), int(given["clients"]), int(given["tokens"]), trials)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where} holds no plan ({type(error).__name__}: {error}); give what --json wrote") from None
    for trial in found.trials:
        _sound(trial, where)
    if not found.trials or found.clients < 1 or found.tokens < 1:
        raise UserError(f"{where}: a plan has at least one trial, one client and one token")
    return found


def _sound(trial: Trial, where: str) -> None:
    numbers = (trial.number, trial.victim, trial.second, trial.turn)
    if trial.fault not in FAULTS or trial.phase not in PHASES:
        raise UserError(f"{where}: trial {trial.number!r} is {trial.fault!r} at {trial.phase!r}, which is not known")
    whole = all(type(number) is int and number >= 0 for number in numbers)
    if not whole or not all(type(x) in (int, float) and math.isfinite(x) and x >= 0 for x in (trial.delay, trial.gap_s)):
        raise UserError(f"{where}: trial {trial.number!r} has a number that is none")
