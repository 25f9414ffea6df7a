"""Bugs, each of which the simulation or the model of the protocol must find."""

from __future__ import annotations

from tests.engine.recovery.plant import Plant

PLANTS = [
    # --- the rules ----------------------------------------------------------------------------------------------------
    Plant(
        "a group serves before all have joined",
        "engine.supervise",
        "if len(self._ready) < len(self.seats) or self._seen:",
        "if len(self._ready) < len(self.seats) - (self.epoch > 1) or self._seen:",
    ),
    Plant(
        "the epoch stays",
        "engine.supervise",
        "        self.epoch += 1\n",
        "        self.epoch += self.epoch < 1\n",
    ),
    Plant(
        "the dead keep their seats",
        "engine.supervise",
        "            del seated[place]\n",
        "            pass\n",
    ),
    Plant(
        "a seated spare stays a spare",
        "engine.supervise",
        "self._spares.pop(0)",
        "self._spares[0]",
    ),
    Plant(
        "a dead spare is kept",
        "engine.supervise",
        "            self._spares.remove(process)\n",
        "",
    ),
    Plant(
        "spares are not refilled",
        "engine.supervise",
        "self._grow = now + self._grow_s\n        return self._refill()",
        "self._grow = now + self._grow_s\n        return ()",
    ),
    Plant(
        "one spare too many",
        "engine.supervise",
        "range(self.policy.spares - len",
        "range(1 + self.policy.spares - len",
    ),
    Plant(
        "the budget is never spent",
        "engine.supervise",
        "return len(times) <= most",
        "return True",
    ),
    Plant(
        "the budget is one less",
        "engine.supervise",
        "return len(times) <= most",
        "return len(times) < most",
    ),
    Plant(
        "the budget forgets at once",
        "engine.supervise",
        "now - self.policy.within_s",
        "now - 0.1",
    ),
    Plant(
        "the budget never forgets",
        "engine.supervise",
        "now - self.policy.within_s",
        "now - 1e9",
    ),
    Plant(
        "exit is restart",
        "engine.supervise",
        'if self.policy.on_loss == "exit" or',
        "if",
    ),
    Plant(
        "a complaint is a cause",
        "engine.supervise",
        'if fault.kind != "left" or all(',
        "if True or all(",
    ),
    Plant(
        "complaints are awaited for ever",
        "engine.supervise",
        "            self._settled = now + SETTLE_S\n",
        "            self._settled = now + 1e9\n",
    ),
    Plant(
        "who complains is blamed",
        "engine.supervise",
        "process := self.seats[seat]) not in",
        "process := self.seats[seat]) in",
    ),
    Plant(
        "what was settled is judged again",
        "engine.supervise",
        "self._ready, self._seen, self._settled = [], {}, None",
        "self._ready, self._seen = [], {}",
    ),
    Plant(
        "what was seen is seen again",
        "engine.supervise",
        "self._ready, self._seen, self._settled = [], {}, None",
        "self._ready, self._settled = [], None",
    ),
    Plant(
        "who was ready is ready",
        "engine.supervise",
        "self._ready, self._seen, self._settled = [], {}, None",
        "self._seen, self._settled = {}, None",
    ),
    Plant(
        "a stuck process is left alone",
        "engine.supervise",
        '(Kill(process), *self._fault(process, Fault("stuck", reason), now))',
        'self._fault(process, Fault("stuck", reason), now)',
    ),
    Plant(
        "who cannot form a group is tried for ever",
        "engine.supervise",
        "        if forming and own:\n",
        "        if forming and own and False:\n",
    ),
    Plant(
        "places that fail are tried for ever",
        "engine.supervise",
        "if self._failed[place] >= TRIES]",
        "if False]",
    ),
    Plant(
        "a smaller group never grows",
        "engine.supervise",
        "            self._grow = now + self._grow_s\n",
        "            pass\n",
    ),
    Plant(
        "a smaller cut keeps all processes",
        "engine.supervise",
        "return (*left, *spawned, *self._form())",
        "return (*spawned, *self._form())",
    ),
    Plant(
        "a group that is too small is the end",
        "engine.supervise",
        "        if len(self.places) == self.size:\n            return self._give_up",
        "        if True:\n            return self._give_up",
    ),
    Plant(
        "the first failure to form is mended",
        "engine.supervise",
        "(own and forming and not self.served)",
        "False",
    ),
    # --- what is heard and done ---------------------------------------------------------------------------------------
    Plant(
        "an old epoch is heard",
        "engine.process_ranks",
        'if number not in supervisor.seats or getattr(message, "epoch", supervisor.epoch) != supervisor.epoch:',
        "if number not in supervisor.seats:",
    ),
    Plant(
        "what was computed before is taken",
        "engine.process_ranks",
        "        self._out = deque(found for found in self._out if isinstance(found, Formed))\n",
        "",
    ),
    Plant(
        "a group of others is not told of",
        "engine.process_ranks",
        "        self._out.append(Formed(",
        "        deque[Formed]().append(Formed(",
    ),
    Plant(
        "steps go out before the new group is known",
        "engine.process_ranks",
        "return self._supervisor.serving and not any(isinstance(found, Formed) for found in self._out)",
        "return self._supervisor.serving",
    ),
    Plant(
        "who takes nothing is waited for",
        "engine.process_ranks",
        "        except BlockingIOError:\n            self._do(",
        "        except BlockingIOError:\n            (lambda _: None)(",
    ),
    Plant(
        "the rest is told of a group that is no more",
        "engine.process_ranks",
        "if self._supervisor.epoch == form.epoch:  # none",
        "if True:  # none",
    ),
    Plant(
        "steps go to a broken group",
        "engine.process_ranks",
        "            if self._supervisor.serving:\n                self._send",
        "            if True:\n                self._send",
    ),
    Plant(
        "the cut is the old one",
        "engine.process_ranks",
        "            self.setup = self._setup_of(form.places)\n",
        "            self._setup_of(form.places)\n",
    ),
    Plant(
        "a failed cut is formed",
        "engine.process_ranks",
        "            self._do(self._supervisor.refused(str(error), self._clock()))\n            return\n",
        "            self.setup = self._target\n",
    ),
    Plant(
        "the dead are listened to",
        "engine.process_ranks",
        "        self._started.remove(news.process)\n"
        "        self._do(self._supervisor.ended(news.process, reason, self._clock()))",
        "        self._started.remove(news.process)\n        self._supervisor.ended(news.process, reason, self._clock())",
    ),
    Plant(
        "nobody is told that an epoch is over",
        "engine.process_ranks",
        "        self._started.want(form.epoch, before.layout.mesh.size if shared else 0)\n",
        "",
    ),
    Plant(
        "a step that ends the group is awaited",
        "engine.process_ranks",
        "        self._asked += self._supervisor.serving  #",
        "        self._asked += 1  #",
    ),
    Plant(
        "steps of a lost group are awaited",
        "engine.process_ranks",
        "        self._asked = 0\n        self._rows",
        "        self._rows",
    ),
    Plant(
        "the watch is not believed",
        "engine.process_ranks",
        "        if finding := self._lookout.look(now, self._busy):\n",
        "        if (finding := self._lookout.look(now, self._busy)) and False:\n",
    ),
    Plant(
        "the watch looks at those of before",
        "engine.process_ranks",
        "        self._lookout.begin(",
        "        form.epoch or self._lookout.begin(",
    ),
    Plant(
        "an error of a step is everybody's",
        "engine.process_ranks",
        "self._failed = loss.reason if loss.lone else None",
        "self._failed = None",
    ),
    Plant(
        "any loss is an error of a step",
        "engine.process_ranks",
        "self._failed = loss.reason if loss.lone else None",
        "self._failed = loss.reason",
    ),
    # --- what goes on -------------------------------------------------------------------------------------------------
    Plant(
        "caches are taken for full",
        "sched.scheduler",
        "        self.cache = Holdings(pages or [pool.count for pool in self.cache.pools], self.cache.windows, self.limits)\n",
        "",
    ),
    Plant(
        "what was in flight is awaited",
        "sched.scheduler",
        "        if self._flight:\n            self.drop(self._flight[0].number)\n        for s",
        "        for s",
    ),
    Plant(
        "who runs goes on where it was",
        "sched.scheduler",
        "        for sequence in reversed(self.running):\n"
        "            self._leave(sequence)\n"
        "            self._roster.wait(sequence)\n"
        "        for number, limit",
        "        for number, limit",
    ),
    Plant(
        "a step that was not told its draws is told them",
        "engine.core",
        "        self._ranks = ranks\n        self._unsampled = None\n",
        "        self._ranks = ranks\n",
    ),
    Plant(
        "nobody is suspected",
        "engine.core",
        "doubted = self.scheduler.in_doubt if failed is not None else ()",
        "doubted = ()",
    ),
    Plant(
        "one suspect alone is tried again",
        "engine.core",
        "guilty = doubted[0] if len(doubted) == 1 else None",
        "guilty = None",
    ),
    Plant(
        "all suspects are guilty",
        "engine.core",
        "guilty = doubted[0] if len(doubted) == 1 else None",
        "guilty = doubted[0] if doubted else None",
    ),
]
"""Each with where it is, what stands there, and what does instead."""
