"""Pages of the KV cache: who holds them, and which prefix of tokens each one holds the keys of.

Known prefixes are a tree whose edges are whole pages of tokens, so what is found was compared token by token. It knows
neither requests nor devices; a page is a number.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from shardwise.sched.step import SCRATCH
from shardwise.spec.layout import PAGE_TOKENS

ROOTS = 1024
"""From so many salts on, those under which nothing is known are swept out before another one comes."""

Salt = Hashable
"""What besides its tokens makes a prefix another one: tenant, adapter, media, the regime of a rope."""


@dataclass(eq=False, slots=True)
class Node:
    """One page of tokens after those of `parent`. `pages[g]` is the page of group g that holds its keys, or SCRATCH."""

    parent: Node | None
    tokens: tuple[int, ...]
    pages: list[int]
    children: dict[tuple[int, ...], Node] = field(default_factory=dict)
    attached: bool = True


class Pool:
    """The pages of one cache group. A page is held by any number of sequences; one that nobody holds keeps what it is known
    for until it is needed, the longest unheld first."""

    def __init__(self, group: int, count: int) -> None:
        self.group = group
        self.count = count
        self._holders = [0] * count
        self._nodes: list[Node | None] = [None] * count
        self._empty = list(range(count - 1, SCRATCH, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return len(self._empty) + len(self._idle)

    @property
    def known(self) -> int:
        """Free pages that still hold a known prefix."""
        return len(self._idle)

    def holders(self, page: int) -> int:
        """How many hold `page`."""
        return self._holders[page]

    def take(self) -> int:
        """A page for one holder; its old contents are forgotten. There must be a free one."""
        if self._empty:
            page = self._empty.pop()
        else:
            page, _ = self._idle.popitem(last=False)
            self._forget(page)
        self._holders[page] = 1
        return page

    def hold(self, page: int) -> None:
        """One more holder of a page that is held or still known."""
        if not self._holders[page]:
            del self._idle[page]
        self._holders[page] += 1

    def release(self, page: int) -> None:
        """One holder less."""
        assert self._holders[page] > 0
        self._holders[page] -= 1
        if not self._holders[page]:
            if self._nodes[page] is None:
                self._empty.append(page)
            else:
                self._idle[page] = None

    def publish(self, page: int, node: Node) -> None:
        """From now on `page` is found as the page of `node`, if no other one is already."""
        if node.pages[self.group] == SCRATCH and self._nodes[page] is None:
            node.pages[self.group] = page
            self._nodes[page] = node

    def forget(self) -> None:
        """All contents are lost: no page that nobody holds is known for anything."""
        for page, node in enumerate(self._nodes):
            if node is not None:
                self._forget(page)
        self._empty += reversed(self._idle)
        self._idle.clear()

    def disown(self, page: int) -> None:
        """From now on `page` is known for nothing."""
        self._forget(page)
        if page in self._idle:
            del self._idle[page]
            self._empty.append(page)

    def _forget(self, page: int) -> None:
        node = self._nodes[page]
        self._nodes[page] = None
        if node is not None:
            node.pages[self.group] = SCRATCH
            _prune(node)


def _prune(node: Node) -> None:
    """Takes the node, and those above it, out of the tree where nothing is known there any more."""
    while node.parent is not None and not node.children and not any(node.pages):
        node.attached = False
        del node.parent.children[node.tokens]
        node = node.parent


class Prefixes:
    """All known prefixes. `windows[g]` is how far group g looks back, None for all the way."""

    def __init__(self, windows: Sequence[int | None]) -> None:
        self._windows = tuple(windows)
        self._roots: dict[Salt, Node] = {}

    def root(self, salt: Salt) -> Node:
        """Where the prefixes of `salt` begin."""
        if salt not in self._roots and len(self._roots) >= ROOTS:
            self._roots = {salt: root for salt, root in self._roots.items() if root.children}
        return self._roots.setdefault(salt, self._node(None, ()))

    def after(self, node: Node, tokens: tuple[int, ...]) -> Node | None:
        """The node of one more page of `tokens`, made where there is none; None below what was forgotten meanwhile."""
        if not node.attached:
            return None
        found = node.children.get(tokens)
        if found is None:
            found = node.children[tokens] = self._node(node, tokens)
        return found

    def find(self, salt: Salt, tokens: Sequence[int], most: int) -> list[Node]:
        """The longest known prefix of `tokens` of at most `most` tokens, page by page, that every group can go on from."""
        node, path = self._roots.get(salt), []
        for start in range(0, most - PAGE_TOKENS + 1, PAGE_TOKENS):
            node = node.children.get(tuple(tokens[start : start + PAGE_TOKENS])) if node else None
            if node is None:
                break
            path.append(node)
        length = len(path)
        for group, window in enumerate(self._windows):
            if window is None:
                length = next((i for i in range(length) if path[i].pages[group] == SCRATCH), length)
        windowed = [group for group, window in enumerate(self._windows) if window is not None]
        while not all(self._held(path, length, group) for group in windowed):
            length -= 1
        return path[:length]

    def first(self, group: int, position: int) -> int:
        """The first page that a query at `position` sees in a group."""
        window = self._windows[group]
        return 0 if window is None else max(0, position - window + 1) // PAGE_TOKENS

    def _held(self, path: Sequence[Node], length: int, group: int) -> bool:
        """Whether the next token after `length` pages finds all that it sees."""
        return all(path[i].pages[group] != SCRATCH for i in range(self.first(group, length * PAGE_TOKENS), length))

    def _node(self, parent: Node | None, tokens: tuple[int, ...]) -> Node:
        return Node(parent, tokens, [SCRATCH] * len(self._windows))
