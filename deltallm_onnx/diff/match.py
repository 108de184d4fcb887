"""Which node of one graph is which node of the other.

1. Exact: nodes that compute the same expression and are used in the same way; then the same expression only; then the
   same use only. In an unchanged graph, and on both sides of a single change, this finds every pair.
2. Nearby (Weisfeiler-Lehman): what looks alike within 3, 2, 1 steps and is unique on both sides. Weights
   make the middle of a network unique even where both its ends have changed. After each radius, pairs grow along edges
   while nothing contradicts them.
3. Best guess: remaining nodes of the same operator with at least as many agreeing as contradicting neighbours, best
   first; so a node that was rewired or whose attributes changed is still the same node.

What is left was added or removed. Every step is linear in nodes and edges up to a logarithm.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import product

from deltallm_onnx.diff.hashing import Interner, backward, forward, labels, leaf_slots
from deltallm_onnx.diff.leaves import Anchors
from deltallm_onnx.diff.view import NODE, NONE, Edge, GraphView, NodeView, Operand

_RADIUS = 3
#: What a pair next to matched ones needs: the same label and nothing against it; the same operator and not more against
#: it than for it; the same label and anything for it.
_CERTAIN, _LIKELY, _BY_LABEL = range(3)
#: Most candidate pairs between the users of one matched pair; above it they are told apart by what they look like.
_MANY_PAIRS = 64
#: Uses that count when two candidates are weighed: a constant shared by a whole network is not read through each time.
_MANY_EDGES = 128


class Match:
    """The pairs found between two graphs.

    Attributes:
        to_b, to_a: partner of every node, or -1.
        forward: per side, the forward identities of the nodes.
        label: per side, the labels of the nodes.
    """

    def __init__(self, a: GraphView, b: GraphView, anchors: Anchors, intern: Interner) -> None:
        self.views = (a, b)
        self.anchors = anchors
        self.to_b, self.to_a = [-1] * len(a.nodes), [-1] * len(b.nodes)
        self.label = (labels(a, intern), labels(b, intern))
        uses = [backward(v, anchors.leaves[s], self.label[s], anchors.sinks[s], intern) for s, v in enumerate((a, b))]
        values = [forward(v, anchors.leaves[s], intern, salt=uses[s]) for s, v in enumerate((a, b))]
        self.forward = (values[0], values[1])
        self._intern = intern
        self._exact(uses)
        self._grow_from_anchors()

    def pairs(self) -> list[tuple[int, int]]:
        """(node of a, node of b), by the first."""
        return [(i, j) for i, j in enumerate(self.to_b) if j >= 0]

    def same(self, x: Operand, y: Operand) -> bool:
        """Whether an operand in a and one in b are the same: matched, or the same expression."""
        if x.source != NODE or y.source != NODE:
            if NODE in (x.source, y.source):
                return False
            return self.anchors.leaves[0][x] == self.anchors.leaves[1][y]
        if x.output != y.output:
            return False
        return self.to_b[x.entry] == y.entry or self.forward[0][x.entry] == self.forward[1][y.entry]

    # -- step 1 ------------------------------------------------------------------------------------------------------

    def _exact(self, uses: Sequence[Sequence[int]]) -> None:
        values = self.forward
        self._pair_equal(lambda side, i: (values[side][i], uses[side][i]), unique=False)
        self._pair_equal(lambda side, i: values[side][i], unique=True)
        # A node that nobody reads is used like any other such node: its use says nothing.
        self._pair_equal(lambda side, i: None if self._is_dead_end(side, i) else uses[side][i], unique=True)

    def _pair_equal(self, key: Callable[[int, int], Hashable], *, unique: bool) -> list[tuple[int, int]]:
        """Pair unmatched nodes of equal key (None: never); with `unique` only where it is one to one."""
        groups: tuple[dict[Hashable, list[int]], dict[Hashable, list[int]]] = ({}, {})
        for side, partner in enumerate((self.to_b, self.to_a)):
            for i, other in enumerate(partner):
                if other < 0 and (k := key(side, i)) is not None:
                    groups[side].setdefault(k, []).append(i)
        found: list[tuple[int, int]] = []
        for k, left in groups[0].items():
            right = groups[1].get(k, [])
            if right and (not unique or len(left) == len(right) == 1):
                found.extend(zip(left, right, strict=False))
        for i, j in found:
            self._set(i, j)
        return found

    def _set(self, i: int, j: int) -> None:
        self.to_b[i], self.to_a[j] = j, i

    # -- steps 2 and 3 -----------------------------------------------------------------------------------------------

    def _grow_from_anchors(self) -> None:
        self._grow(self.pairs(), _CERTAIN)
        for radius in range(_RADIUS, 0, -1):
            self._grow(self._pair_nearby(radius), _CERTAIN)
        values = self.forward
        self._grow(self._pair_equal(lambda side, i: values[side][i], unique=False), _CERTAIN)
        self._grow(self.pairs(), _LIKELY)
        self._grow(self.pairs(), _BY_LABEL)
        # Both ends of a stretch may have changed: then its nodes are alike in one direction only.
        self._grow(self._pair_nearby(1, below=False), _LIKELY)
        self._grow(self._pair_nearby(1, above=False), _LIKELY)
        # Nothing is near a dead end whose operands have changed but what it is itself.
        ends = self._pair_equal(lambda s, i: self.label[s][i] if self._is_dead_end(s, i) else None, unique=False)
        self._grow(ends, _BY_LABEL)

    def _is_dead_end(self, side: int, i: int) -> bool:
        return not self.views[side].nodes[i].edges and i not in self.anchors.sinks[side]

    def _complete(self) -> bool:
        return -1 not in self.to_b or -1 not in self.to_a

    def _pair_nearby(self, radius: int, *, above: bool = True, below: bool = True) -> list[tuple[int, int]]:
        """Pair unmatched nodes that look alike within `radius` steps and are alone in that."""
        if self._complete():
            return []
        colours = [self._colours(side, radius, above=above, below=below) for side in (0, 1)]
        return self._pair_equal(lambda side, i: colours[side].get(i), unique=True)

    def _colours(self, side: int, radius: int, *, above: bool, below: bool) -> dict[int, int]:
        """Colours of the unmatched nodes after `radius` rounds; matched neighbours are fixed points."""
        view, label, anchors = self.views[side], self.label[side], self.anchors
        partner = (self.to_b, self.to_a)[side]
        loose = [i for i, other in enumerate(partner) if other < 0]
        known = {i: self._intern("pair", i if side == 0 else j) for i, j in enumerate(partner) if j >= 0}
        for i in loose:
            leaves = leaf_slots(view.nodes[i], anchors.leaves[side])
            sinks = tuple(sorted(anchors.sinks[side].get(i, ())))
            known[i] = self._intern("near", label[i], leaves, sinks)
        for _ in range(radius):
            known.update({i: self._recolour(view.nodes[i], known, known[i], above=above, below=below) for i in loose})
        return {i: known[i] for i in loose}

    def _recolour(self, node: NodeView, known: dict[int, int], own: int, *, above: bool, below: bool) -> int:
        read = [(node.slot(p), known[x.entry], x.output) for p, x in enumerate(node.operands) if x.source == NODE]
        if node.is_commutative:
            read.sort()
        used = sorted((known[e.node], e.slot, e.output) for e in node.edges)
        return self._intern("near", own, tuple(read) if above else (), tuple(used) if below else ())

    def _grow(self, seeds: Iterable[tuple[int, int]], trust: int) -> None:
        """Match neighbours of matched pairs, best first."""
        if self._complete():
            return
        heap: list[tuple[int, int, int]] = []
        for i, j in seeds:
            self._push(heap, self._candidates(i, j), trust)
        self._push(heap, self._output_sources(), trust)
        if trust != _CERTAIN:
            self._push(heap, self._facing(self._leaf_users(0), self._leaf_users(1)), trust)
        while heap:
            score, i, j = heapq.heappop(heap)
            if self.to_b[i] >= 0 or self.to_a[j] >= 0:
                continue
            now = self._score(i, j, trust)
            if now is None:
                continue
            if -now > score:
                heapq.heappush(heap, (-now, i, j))
                continue
            self._set(i, j)
            self._push(heap, self._candidates(i, j), trust)

    def _push(self, heap: list[tuple[int, int, int]], candidates: Iterable[tuple[int, int]], trust: int) -> None:
        for x, y in candidates:
            score = self._score(x, y, trust)
            if score is not None:
                heapq.heappush(heap, (-score, x, y))

    def _candidates(self, i: int, j: int) -> Iterable[tuple[int, int]]:
        """Unmatched nodes at the same place next to a matched pair."""
        a, b = self.views[0].nodes, self.views[1].nodes
        left, right = a[i].operands, b[j].operands
        above = product(left, right) if a[i].is_commutative else zip(left, right, strict=False)
        for x, y in above:
            if self._open(0, x) and self._open(1, y) and x.output == y.output:
                yield x.entry, y.entry
        yield from self._facing(self._captured(0, a[i]), self._captured(1, b[j]))
        yield from self._facing(self._users(0, a[i].edges), self._users(1, b[j].edges))

    def _output_sources(self) -> Iterable[tuple[int, int]]:
        for i, j in self.anchors.outputs.items():
            x, y = self.views[0].outputs[i].operand, self.views[1].outputs[j].operand
            if self._open(0, x) and self._open(1, y) and x.output == y.output:
                yield x.entry, y.entry

    def _users(self, side: int, edges: Iterable[Edge]) -> dict[Hashable, list[int]]:
        partner, nodes = (self.to_b, self.to_a)[side], self.views[side].nodes
        found: dict[Hashable, list[int]] = {}
        for edge in edges:
            if partner[edge.node] < 0:
                found.setdefault((nodes[edge.node].kind, edge.slot, edge.output), []).append(edge.node)
        return found

    def _captured(self, side: int, node: NodeView) -> dict[Hashable, list[int]]:
        found: dict[Hashable, list[int]] = {}
        for operand in node.captured.values():
            if self._open(side, operand):
                kind = self.views[side].nodes[operand.entry].kind
                found.setdefault((kind, operand.output), []).append(operand.entry)
        return found

    def _leaf_users(self, side: int) -> dict[Hashable, list[int]]:
        partner, nodes, leaves = (self.to_b, self.to_a)[side], self.views[side].nodes, self.anchors.leaves[side]
        found: dict[Hashable, list[int]] = {}
        for i, other in enumerate(partner):
            if other < 0:
                for slot, token in leaf_slots(nodes[i], leaves):
                    found.setdefault((nodes[i].kind, slot, token), []).append(i)
        return found

    def _facing(self, left: dict[Hashable, list[int]], right: dict[Hashable, list[int]]) -> Iterable[tuple[int, int]]:
        for key, xs in left.items():
            ys = right.get(key, [])
            if len(xs) * len(ys) <= _MANY_PAIRS:
                yield from ((x, y) for x in xs for y in ys)
                continue
            alike: dict[int, tuple[list[int], list[int]]] = {}
            for side, members in enumerate((xs, ys)):
                for m in members:
                    alike.setdefault(self._look(side, m), ([], []))[side].append(m)
            for some, others in alike.values():
                yield from zip(some, others, strict=False)

    def _look(self, side: int, i: int) -> int:
        return self._intern(
            "look", self.label[side][i], leaf_slots(self.views[side].nodes[i], self.anchors.leaves[side])
        )

    def _score(self, i: int, j: int, trust: int) -> int | None:
        """How well two nodes fit by what is known of their neighbours; None if they may not be matched."""
        same_label = self.label[0][i] == self.label[1][j]
        if self.views[0].nodes[i].kind != self.views[1].nodes[j].kind or (trust != _LIKELY and not same_label):
            return None
        agree, against = self._weigh_operands(i, j)
        more, less = self._weigh_uses(i, j)
        agree, against = agree + more, against + less
        score = 2 * (agree - against) - (0 if same_label else 1)
        refused = (trust == _CERTAIN and against) or (trust == _LIKELY and score < 0)
        return None if refused or not agree else score

    def _weigh_operands(self, i: int, j: int) -> tuple[int, int]:
        x, y = self.views[0].nodes[i], self.views[1].nodes[j]
        if x.is_commutative:
            left, right = list(x.operands), list(y.operands)
            agree = 0
            for p in x.operands:
                partner = next((q for q in right if self.same(p, q)), None)
                if partner is not None:
                    left.remove(p)
                    right.remove(partner)
                    agree += 1
            unknown = min(sum(self._open(0, p) for p in left), sum(self._open(1, q) for q in right))
            return agree, max(len(left), len(right)) - unknown
        agree = against = 0
        for p, q in zip(x.operands, y.operands, strict=False):
            if p.source == q.source == NONE:
                continue
            if self.same(p, q):
                agree += 1
            elif not (self._open(0, p) and self._open(1, q)):
                against += 1
        return agree, against + abs(len(x.operands) - len(y.operands))

    def _open(self, side: int, operand: Operand) -> bool:
        return operand.source == NODE and (self.to_b, self.to_a)[side][operand.entry] < 0

    def _weigh_uses(self, i: int, j: int) -> tuple[int, int]:
        left = Counter((self.to_b[e.node], e.slot, e.output) for e in self.views[0].nodes[i].edges[:_MANY_EDGES])
        right = Counter(
            (e.node if self.to_a[e.node] >= 0 else -1, e.slot, e.output)
            for e in self.views[1].nodes[j].edges[:_MANY_EDGES]
        )
        agree = sum(min(n, right[key]) for key, n in left.items() if key[0] >= 0)
        known = (sum(n for key, n in side.items() if key[0] >= 0) for side in (left, right))
        sinks = [Counter(self.anchors.sinks[s].get(n, ())) for s, n in ((0, i), (1, j))]
        agree_sinks = sum((sinks[0] & sinks[1]).values())
        contradicting = max(known) - agree + max(sum(s.values()) for s in sinks) - agree_sinks
        return agree + agree_sinks, contradicting
