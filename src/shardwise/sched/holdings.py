"""Which sequence holds which pages of which cache group: growing, sharing, giving back, and finding what is known already.

It decides nothing about who goes first: where pages are lacking it says so.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from collections.abc import Sequence as Many

from shardwise.errors import RequestError
from shardwise.sched.flight import Part, Swap
from shardwise.sched.limits import Limits, peak_pages
from shardwise.sched.pages import Node, Pool, Prefixes
from shardwise.sched.sequence import Request, Sequence, Table
from shardwise.sched.step import SCRATCH
from shardwise.spec.layout import PAGE_TOKENS


class Holdings:
    """`pages[g]` pages of each group g, SCRATCH among them; `windows[g]` is how far the group looks back."""

    def __init__(self, pages: Many[int], windows: Many[int | None], limits: Limits) -> None:
        self.windows = tuple(windows)
        self._windowed = [group for group, window in enumerate(windows) if window is not None]
        self.pools = [Pool(group, count) for group, count in enumerate(pages)]
        self._prefixes = Prefixes(windows)
        self._limits = limits
        self._pledged = [0] * len(self.pools)

    @property
    def groups(self) -> int:
        return len(self.pools)

    def tables(self) -> list[Table]:
        """The tables of a sequence that holds nothing."""
        return [Table() for _ in self.pools]

    # --- whether there is room ----------------------------------------------------------------------------------------

    def check(self, request: Request) -> None:
        """RequestError where the request has nothing to begin with or too many continuations, or where one of these, alone,
        would come to more pages than there are."""
        if not request.prompt:
            raise RequestError("the prompt is empty: it needs at least one token")
        if request.n > self._limits.sequences:
            raise RequestError(f"n is {request.n}, but at most {self._limits.sequences} sequences run at once (--max-num-seqs)")
        for window, pool in zip(self.windows, self.pools, strict=True):
            if peak_pages(window, request.cached) > pool.count - 1:
                held = (pool.count - 1) * PAGE_TOKENS
                raise RequestError(
                    f"the prompt has {len(request.prompt)} tokens and up to {request.limit} may follow: that is "
                    f"{request.cached} tokens to keep, and the cache holds {held}; shorten the prompt, lower max_tokens, or "
                    "give the cache more memory"
                )

    def can_pledge(self, sequence: Sequence) -> bool:
        """Whether the sequence and all that are not preempted again fit together at their largest."""
        peaks = self._peaks(sequence)
        return all(a + b < pool.count for a, b, pool in zip(self._pledged, peaks, self.pools, strict=True))

    def pledge(self, sequence: Sequence) -> None:
        """Makes the sequence one that is not preempted again."""
        self._pledged = [a + b for a, b in zip(self._pledged, self._peaks(sequence), strict=True)]
        sequence.pledged = True

    def unpledge(self, sequence: Sequence) -> None:
        """Takes the pledge back, where there is one."""
        if sequence.pledged:
            self._pledged = [a - b for a, b in zip(self._pledged, self._peaks(sequence), strict=True)]
            sequence.pledged = False

    def _peaks(self, sequence: Sequence) -> list[int]:
        return [peak_pages(window, sequence.request.cached) for window in self.windows]

    def fits(self, sequence: Sequence, path: Many[Node]) -> bool:
        """Whether there are free pages for all that is known of a sequence that waits, given the prefix that was found."""
        for group, (window, pool) in enumerate(zip(self.windows, self.pools, strict=True)):
            shown = self._shown(group, path)
            idle = sum(not pool.holders(page) for page in shown)
            if peak_pages(window, sequence.goal) - len(shown) > pool.free - idle:
                return False
        return True

    def room(self, sequence: Sequence) -> list[Node] | None:
        """The known prefix of a waiting sequence, where there is room for all of it; else None."""
        path = self.lookup(sequence)
        return path if self.fits(sequence, path) else None

    # --- coming and going ---------------------------------------------------------------------------------------------

    def lookup(self, sequence: Sequence) -> list[Node]:
        """The known prefix of a waiting sequence, of whole pages. At least one token is left to compute, and all whose
        log-probabilities are still wanted; all, where their hidden states are summed up."""
        most = sequence.goal - 1
        if sequence.request.pooled == "mean":
            return []
        if sequence.scored < len(sequence.request.prompt):
            most = min(most, sequence.scored - 1)
        if self._limits.shared is not None:
            most = min(most, self._limits.shared) if sequence.known <= self._limits.shared else 0
        if not self._limits.prefixes:
            return []
        return self._prefixes.find(self._salt(sequence), sequence.tokens, most)

    def enter(self, sequence: Sequence, path: list[Node]) -> None:
        """The sequence begins with the prefix that was found."""
        for group, table in enumerate(sequence.tables):
            table.ids = self._shown(group, path)
            table.first = len(path) - len(table.ids)
            table.changed()
            for page in table.ids:
                self.pools[group].hold(page)
        sequence.path = path
        sequence.computed = sequence.issued = len(path) * PAGE_TOKENS

    def leave(self, sequence: Sequence) -> None:
        """The sequence gives back all that it holds, and begins a new life. Last pages first: they are forgotten first."""
        for pool, table in zip(self.pools, sequence.tables, strict=True):
            for page in reversed(table.ids):
                pool.release(page)
        sequence.tables = self.tables()
        sequence.path = []
        sequence.computed = sequence.issued = 0
        sequence.life += 1

    def turn(self, sequence: Sequence) -> None:
        """The sequence begins anew with the angles of its present length."""
        self.leave(sequence)
        sequence.known = sequence.length

    def disown(self, sequence: Sequence) -> None:
        """What the sequence has computed, or found, is not to be found any more: it may be wrong."""
        for node in sequence.path:
            for pool, page in zip(self.pools, tuple(node.pages), strict=True):
                if page != SCRATCH:
                    pool.disown(page)

    def share(self, lead: Sequence, child: Sequence) -> None:
        """`child` holds every page that `lead` does."""
        for pool, own, table in zip(self.pools, lead.tables, child.tables, strict=True):
            for page in own.ids:
                pool.hold(page)
            table.first, table.ids = own.first, list(own.ids)
            table.changed()

    def forget(self) -> None:
        """The contents of all pages are lost. Nobody may hold any."""
        for pool in self.pools:
            assert pool.free == pool.count - 1, f"group {pool.group}: pages are still held"
            pool.forget()

    # --- growing ------------------------------------------------------------------------------------------------------

    def grow(self, sequence: Sequence, wanted: int, swaps: list[Swap]) -> int:
        """Takes pages so that `wanted` more tokens can be written, and a page of its own for one that is shared. How many can
        be: fewer where pages are lacking in any group; where none can be, nothing is taken."""
        start, until = sequence.issued, sequence.issued + wanted
        # Whole pages are what prefixes share; one that is begun is shared among the continuations of one request alone.
        begun = start % PAGE_TOKENS > 0 and sequence.request.n > 1
        if not begun and until <= sequence.tables[0].end * PAGE_TOKENS:
            return wanted
        copied = [begun and self._shared(group, sequence, start) for group in range(self.groups)]
        for pool, table, copy in zip(self.pools, sequence.tables, copied, strict=True):
            until = min(until, (table.end + pool.free - copy) * PAGE_TOKENS)
        if until <= start:
            return 0
        for pool, table, copy in zip(self.pools, sequence.tables, copied, strict=True):
            if copy:
                index = start // PAGE_TOKENS - table.first
                swaps.append(Swap(pool.group, index + table.first, table.ids[index], pool.take()))
                table.ids[index] = swaps[-1].new
                table.changed()
            if table.end * PAGE_TOKENS < until:
                table.ids += [pool.take() for _ in range(-(-until // PAGE_TOKENS) - table.end)]
                table.changed()
        return until - start

    def _shared(self, group: int, sequence: Sequence, position: int) -> bool:
        """Whether somebody else holds the page of `position` too."""
        table = sequence.tables[group]
        return self.pools[group].holders(table.ids[position // PAGE_TOKENS - table.first]) > 1

    def undo(self, part: Part) -> None:
        """Gives back what a part of a step reserved."""
        sequence = part.sequence
        for swap in part.swaps:
            if not part.alive:
                self.pools[swap.group].release(swap.old)
                continue
            table = sequence.tables[swap.group]
            table.ids[swap.index - table.first] = swap.old
            table.changed()
            self.pools[swap.group].release(swap.new)
        if part.alive:
            sequence.issued = part.start
            for pool, table in zip(self.pools, sequence.tables, strict=True):
                keep = max(0, -(-part.start // PAGE_TOKENS) - table.first)
                for page in reversed(table.ids[keep:]):
                    pool.release(page)
                del table.ids[keep:]
                table.changed()

    def settle(self, part: Part) -> None:
        """The copies of a part were made: the pages that were copied are let go."""
        for swap in part.swaps:
            self.pools[swap.group].release(swap.old)

    def commit(self, sequence: Sequence) -> None:
        """All up to `computed` is in the cache for certain: full pages become known, those behind a window are given back."""
        if sequence.computed // PAGE_TOKENS > len(sequence.path) and self._limits.prefixes:
            self._publish(sequence)
        for group in self._windowed:
            table = sequence.tables[group]
            behind = self._prefixes.first(group, sequence.computed) - table.first
            if behind > 0:
                for page in table.ids[:behind]:
                    self.pools[group].release(page)
                del table.ids[:behind]
                table.first += behind
                table.changed()

    def _publish(self, sequence: Sequence) -> None:
        full = sequence.computed // PAGE_TOKENS
        node = sequence.path[-1] if sequence.path else self._prefixes.root(self._salt(sequence))
        for index in range(len(sequence.path), full):
            end = (index + 1) * PAGE_TOKENS
            if self._limits.shared is not None and max(sequence.known, end) > self._limits.shared:
                return
            found = self._prefixes.after(node, tuple(sequence.tokens[end - PAGE_TOKENS : end]))
            if found is None:
                return
            node = found
            for pool, table in zip(self.pools, sequence.tables, strict=True):
                if table.first <= index < table.end:
                    pool.publish(table.ids[index - table.first], node)
            sequence.path.append(node)

    def _salt(self, sequence: Sequence) -> Hashable:
        return sequence.request.salt, tuple(sequence.known > end for end in self._limits.turns)

    def _shown(self, group: int, path: Many[Node]) -> list[int]:
        """The pages of a found prefix that the next token sees in a group."""
        first = self._prefixes.first(group, len(path) * PAGE_TOKENS)
        return [node.pages[group] for node in path[first:]]

    def held(self, sequences: Many[Sequence]) -> Iterator[tuple[int, int]]:
        """(group, page) once for every hold of every sequence: for accounts."""
        for sequence in sequences:
            for group, table in enumerate(sequence.tables):
                yield from ((group, page) for page in table.ids)
