"""The simulation finds bugs: each of these is planted, and found within a few small days. A control without a bug is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sched.plant import Plant, planted
from tests.sched.simulation import Day

DAYS, REQUESTS = 100, 30

PLANTS = [
    Plant("a found page is not held", "holdings", "                self.pools[group].hold(page)\n", "                pass\n"),
    Plant("a page shared by a fork is not held", "holdings", "                pool.hold(page)\n", "                pass\n"),
    Plant(
        "a page is free with one holder left", "pages", "        self._holders[page] -= 1", "        self._holders[page] = 0"
    ),
    Plant(
        "a known page is taken before an empty one is",
        "pages",
        "del self._idle[page]\n        self._holders[page] += 1",
        "pass\n        self._holders[page] += 1",
    ),
    Plant(
        "no copy on write",
        "holdings",
        "holders(table.ids[position // PAGE_TOKENS - table.first]) > 1",
        "holders(table.ids[position // PAGE_TOKENS - table.first]) > 9",
    ),
    Plant(
        "the last holder but one writes in place",
        "holdings",
        "PAGE_TOKENS - table.first]) > 1",
        "PAGE_TOKENS - table.first]) > 2",
    ),
    Plant(
        "a copied page is let go at once",
        "holdings",
        "                table.ids[index] = swaps[-1].new\n",
        "                pool.release(table.ids[index])\n                table.ids[index] = swaps[-1].new\n",
    ),
    Plant(
        "settle forgets the copied page",
        "holdings",
        "            self.pools[swap.group].release(swap.old)\n\n    def commit",
        "            pass\n\n    def commit",
    ),
    Plant(
        "what was issued is committed",
        "scheduler",
        "            sequence.computed = part.start + kept\n",
        "            sequence.computed = max(part.start + kept, min(sequence.issued, len(sequence.tokens)))\n",
    ),
    Plant(
        "a page that is not full is published",
        "holdings",
        "        full = sequence.computed // PAGE_TOKENS\n",
        "        full = -(-sequence.computed // PAGE_TOKENS)\n",
    ),
    Plant("salts are not compared", "holdings", "return sequence.request.salt, tuple(", "return 0, tuple("),
    Plant("angles are not compared", "holdings", "tuple(sequence.known > end for end in self._limits.turns)", "()"),
    Plant(
        "keys of a moving rope are shared",
        "holdings",
        "max(sequence.known, end) > self._limits.shared",
        "sequence.known > 10**9",
    ),
    Plant(
        "keys of a moving rope are looked up", "holdings", "if sequence.known <= self._limits.shared else 0", "if True else 0"
    ),
    Plant("a window ends one token early", "pages", "max(0, position - window + 1)", "max(0, position - window + 2)"),
    Plant("a window's pages are counted from the wrong one", "holdings", "table.first += behind", "table.first += behind + 1"),
    Plant(
        "pages behind a window leak",
        "holdings",
        "                    self.pools[group].release(page)\n                del",
        "                    pass\n                del",
    ),
    Plant(
        "a gap in a full group is overlooked",
        "pages",
        "if path[i].pages[group] == SCRATCH), length)",
        "if path[i].pages[group] == -1), length)",
    ),
    Plant(
        "a gap in a window is overlooked",
        "pages",
        "        while not all(self._held(path, length, group) for group in windowed):\n            length -= 1\n",
        "",
    ),
    Plant(
        "a taken page is still known",
        "pages",
        "            page, _ = self._idle.popitem(last=False)\n            self._forget(page)\n",
        "            page, _ = self._idle.popitem(last=False)\n",
    ),
    Plant(
        "lost contents are still known",
        "pages",
        "            if node is not None:\n                self._forget(page)\n",
        "            pass\n",
    ),
    Plant("the whole prompt is found", "holdings", "        most = sequence.goal - 1\n", "        most = sequence.goal\n"),
    Plant("scored tokens are found instead of computed", "holdings", "most = min(most, sequence.scored - 1)", "most = most"),
    Plant(
        "states of a found prefix are left out of a mean", "holdings", 'request.pooled == "mean"', 'request.pooled == "means"'
    ),
    Plant("a sum goes on when its prompt starts over", "pooling", "if item.start == 0 or item", "if not self.count or item"),
    Plant("the last state is another one", "flight", "or stop == sequence.goal else", "or self.start == 0 else"),
    Plant(
        "pages of a dropped step leak",
        "holdings",
        "                for page in reversed(table.ids[keep:]):\n                    pool.release(page)\n",
        "",
    ),
    Plant("drop keeps what was issued", "holdings", "            sequence.issued = part.start\n", ""),
    Plant("drop keeps the source", "scheduler", "            del drawn.sources[-1]\n", "            pass\n"),
    Plant(
        "drop takes the oldest source", "scheduler", "            del drawn.sources[-1]\n", "            del drawn.sources[0]\n"
    ),
    Plant("drop keeps the scoring", "scheduler", "        sequence.scoring = part.scoring\n", ""),
    Plant("drop keeps the fork", "scheduler", "if part.forked and not sequence.finished:", "if False:"),
    Plant(
        "drop leaves it guessing",
        "scheduler",
        "        if part.guesses:\n            sequence.guessing = False\n        sequence.scoring",
        "        sequence.scoring",
    ),
    Plant(
        "drop begins with the oldest step",
        "scheduler",
        "for part in reversed(self._flight.pop().parts.values()):",
        "for part in reversed(self._flight.popleft().parts.values()):",
    ),
    Plant(
        "an old life's step is committed", "flight", "return self.sequence.life == self.life", "return self.sequence.running"
    ),
    Plant("the source is the oldest step", "scheduler", "sequence.sources[-1] if", "sequence.sources[0] if"),
    Plant(
        "a token more than the budget",
        "scheduler",
        "min(todo, self.limits.tokens - plan.tokens)",
        "min(todo, self.limits.tokens - plan.tokens + 1)",
    ),
    Plant(
        "guesses are not counted",
        "scheduler",
        "self.limits.tokens - sum(todo for _, todo in ready)",
        "self.limits.tokens",
    ),
    Plant(
        "the oldest gives way",
        "roster",
        "        for other in reversed(self.running):\n            if not other.pledged",
        "        for other in self.running:\n            if not other.pledged",
    ),
    Plant("an older one gives way", "roster", "(sequence.pledged or other.order > sequence.order)", "True"),
    Plant("the pledged give way", "roster", "if not other.pledged and other is not sequence", "if other is not sequence"),
    Plant(
        "nobody is ever pledged",
        "scheduler",
        "        last = sequence.preempted >= self.limits.preemptions\n",
        "        last = False\n",
    ),
    Plant(
        "one preemption more",
        "scheduler",
        "        last = sequence.preempted >= self.limits.preemptions\n",
        "        last = sequence.preempted > self.limits.preemptions\n",
    ),
    Plant("a pledge is never taken back", "scheduler", "        self.cache.unpledge(sequence)\n", ""),
    Plant("places are not given back", "roster", "        self._slots -= sequence.slots\n", ""),
    Plant(
        "the places of a fork are not kept", "roster", "self._slots + sequence.slots <= self.most", "self._slots < self.most"
    ),
    Plant(
        "a dropped fork takes no places again", "roster", "            self._slots += lead.slots - 1\n", "            pass\n"
    ),
    Plant(
        "one token more than the limit",
        "sequence",
        "if drawn == request.limit else None",
        "if drawn == request.limit + 1 else None",
    ),
    Plant("ends are ignored", "sequence", "if chosen.token in request.ends and drawn > request.least:", "if False:"),
    Plant("least is ignored", "sequence", "request.ends and drawn > request.least:", "request.ends:"),
    Plant("least is one more", "sequence", "drawn > request.least:", "drawn > request.least + 1:"),
    Plant(
        "tokens after the end are told",
        "sequence",
        "            if finish:\n                break\n",
        "",
    ),
    Plant("a wrong guess is kept", "scheduler", "part.count - part.guesses + max(0, len(results[0].tokens) - 1)", "part.count"),
    Plant("guesses go on at the limit", "scheduler", "sequence.request.limit - sequence.drawn - 1, ", ""),
    Plant("guesses go on where angles change", "scheduler", ", self.limits.unturned(len(sequence.tokens)))", ")"),
    Plant("a fork gives every choice the same number", "scheduler", "(*lead.order[:2], choice)", "(*lead.order[:2], 1)"),
    Plant(
        "it is not turned",
        "scheduler",
        "        if self.limits.turns and self.limits.turned(",
        "        if False and self.limits.turned(",
    ),
    Plant(
        "it is not turned while it waits",
        "scheduler",
        "            self.cache.turn(sequence)\n        last =",
        "            pass\n        last =",
    ),
    Plant("a turn keeps the old length", "holdings", "        sequence.known = sequence.length\n", ""),
    Plant(
        "an ended request keeps its pages",
        "scheduler",
        "        if sequence.running:\n            self._leave(sequence)\n        elif",
        "        if sequence.running:\n            self._roster.stop(sequence)\n        elif",
    ),
    Plant(
        "one choice ends the request",
        "scheduler",
        "if all(s.finished for s in own) else ()",
        "if any(s.finished for s in own) else ()",
    ),
    Plant(
        "deadlines are not looked at",
        "scheduler",
        "        events = tuple(self._expire())\n",
        "        events: tuple[Event, ...] = ()\n",
    ),
    Plant(
        "deadlines of a number that was taken again",
        "scheduler",
        "if self._arrived(number) == arrival:",
        "if number in self._requests:",
    ),
    Plant(
        "steps of a number that was taken again",
        "scheduler",
        "            if not part.sequence.finished:\n                self._apply",
        "            if part.sequence.request.number in self._requests:\n                self._apply",
    ),
    Plant(
        "a stuck one keeps its budget",
        "scheduler",
        "wanted = min(todo, self.limits.tokens - plan.tokens)",
        "wanted = min(todo, spare + todo)",
    ),
    Plant(
        "one that lacks its draws is admitted",
        "scheduler",
        "(sequence := self._next()) is None or sequence.sources:",
        "(sequence := self._next()) is None:",
    ),
    Plant(
        "more steps in flight",
        "scheduler",
        "if len(self._flight) >= self.limits.flight:",
        "if len(self._flight) > self.limits.flight:",
    ),
    Plant(
        "further ahead",
        "scheduler",
        "len(sequence.sources) > self.limits.ahead:",
        "len(sequence.sources) > self.limits.ahead + 1:",
    ),
    Plant(
        "refused one page late",
        "holdings",
        "peak_pages(window, request.cached) > pool.count - 1:",
        "peak_pages(window, request.cached) > pool.count:",
    ),
    Plant(
        "pages are taken in some groups only",
        "holdings",
        "            until = min(until, (table.end + pool.free - copy) * PAGE_TOKENS)\n",
        "            until = max(start + 1, min(until, (table.end + pool.free - copy) * PAGE_TOKENS))\n",
    ),
    Plant(
        "forgotten ones keep their pages",
        "scheduler",
        "            self._leave(sequence)\n            self._roster.wait(sequence)\n        for number",
        "            self._roster.stop(sequence)\n            self._roster.wait(sequence)\n        for number",
    ),
    Plant("only one is a suspect", "scheduler", "for number in suspects:", "for number in suspects[:1]:"),
    Plant(
        "others run beside a suspect",
        "scheduler",
        "        if (alone := self.alone) is None:\n",
        "        if (alone := self.alone) is None or len(self._roster.running) > 1:\n",
    ),
    Plant(
        "a suspect begins while another one is in flight",
        "scheduler",
        "return None if others(alone, self._flight) else next(own, None)",
        "return next(own, None)",
    ),
    Plant("a suspect passes with its first step", "suspects", ">= wanted.get(sequence.choice, 0)", "> 0"),
    Plant("one choice clears all", "suspects", "done.issuperset(wanted)", "not done.isdisjoint(wanted)"),
    Plant(
        "what it had issued counts less after another loss",
        "suspects",
        "max(found.get(choice, 0), before.get(choice, 0))",
        "found.get(choice, 0)",
    ),
    Plant(
        "who passed keeps its pages",
        "scheduler",
        "[s for s in own if s.running and self.alone is not None]",
        "[s for s in own if s.running and self.alone is None]",
    ),
    Plant("an ended request is a suspect still", "scheduler", "        self._suspects.clear(number)\n", ""),
    Plant(
        "who has ended is not in doubt",
        "scheduler",
        "tuple(number if self._arrived(number) == arrival else None for arrival, number in leads.items())",
        "tuple(number for arrival, number in leads.items() if self._arrived(number) == arrival)",
    ),
    Plant(
        "a number that was taken again is in doubt",
        "scheduler",
        "tuple(number if self._arrived(number) == arrival else None for",
        "tuple(number if self._arrived(number) is not None else None for",
    ),
    Plant("who does not fit stays", "scheduler", "                self.check(own[0].request)\n", "                pass\n"),
    Plant("places of the ranks before", "scheduler", "        self._roster.most = self.limits.sequences\n", ""),
    Plant("steps of the ranks before", "scheduler", "self.limits = limits or self.limits", "limits = limits or self.limits"),
    Plant("pages of the ranks before", "scheduler", "Holdings(pages or [pool", "Holdings([pool"),
    Plant(
        "only the first choice has a lower limit",
        "scheduler",
        "for sequence in self._requests.get(number, ()):\n                sequence.request",
        "for sequence in self._requests.get(number, ())[:1]:\n                sequence.request",
    ),
]


def found(plant: Plant | None, days: int) -> str | None:
    """What the simulation says of a scheduler, within some days."""
    for seed in range(days):
        try:
            if plant is None:
                Day(seed, checked=True).run(REQUESTS)
            else:
                with planted(plant) as build:
                    Day(seed, build, checked=True).run(REQUESTS)
        except Exception as error:  # whatever a broken scheduler does: it is found
            return f"day {seed}: {type(error).__name__}: {str(error)[:90]}"
    return None


def test_plants_have_names_of_their_own():
    assert len({plant.name for plant in PLANTS}) == len(PLANTS) >= 20


def test_without_a_plant_nothing_is_found():
    assert found(None, DAYS) is None


@pytest.mark.parametrize("plant", PLANTS[::4], ids=lambda plant: plant.name)
def test_a_planted_bug_is_found(plant: Plant):
    assert found(plant, DAYS) is not None


@pytest.mark.slow
def test_all_planted_bugs_are_found(figures: Callable[..., None]):
    missed = [plant.name for plant in PLANTS if found(plant, DAYS) is None]
    figures("planted bugs", planted=len(PLANTS), found=len(PLANTS) - len(missed))
    assert missed == []


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_the_line_of_a_plant_is_still_there(plant: Plant):
    assert plant.text(plant.module)
