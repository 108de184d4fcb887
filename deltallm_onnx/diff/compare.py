"""Two graphs in, a list of changes out: match the nodes, then say what differs in and between the pairs."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import zip_longest

import onnx_ir as ir

from deltallm_onnx.diff.describe import Describer, attribute_text, op_name
from deltallm_onnx.diff.hashing import Interner
from deltallm_onnx.diff.initializers import initializer_changes, pair_initializers
from deltallm_onnx.diff.leaves import PortRule, find_anchors
from deltallm_onnx.diff.match import Match
from deltallm_onnx.diff.report import Change, Detail
from deltallm_onnx.diff.view import INITIALIZER, INPUT, NODE, GraphView, NodeView, Operand, Port

#: Levels of operands spelled out until two different operands also read differently.
_DEEPEST = 3

Outer = tuple[Mapping[ir.Value, int], Mapping[ir.Value, int]]


@dataclasses.dataclass(frozen=True)
class Options:
    """What does not count as a difference; see `deltallm_onnx.diff.diff`."""

    names: bool = False
    metadata: bool = False
    initializers: bool = False
    shapes: bool = False
    storage: bool = False


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where and how two graphs are compared.

    Attributes:
        options: what to leave out.
        rule: how inputs and outputs correspond.
        intern: shared by both models.
        scope: where the graphs are: empty for main graphs.
        outer: per side, tokens of the values of enclosing graphs that the graphs read.
    """

    options: Options
    rule: PortRule
    intern: Interner
    scope: tuple[str, ...] = ()
    outer: Outer = ({}, {})


def compare_graphs(describers: tuple[Describer, Describer], setting: Setting) -> list[Change]:
    """All changes from one graph to another, those inside their bodies included."""
    return _Comparison(describers, setting).changes()


class _Comparison:
    def __init__(self, describers: tuple[Describer, Describer], setting: Setting) -> None:
        self.say, self.setting = describers, setting
        self.options, self.rule, self.scope, self.intern = setting.options, setting.rule, setting.scope, setting.intern
        self.a, self.b = describers[0].view, describers[1].view
        self.anchors = find_anchors(self.a, self.b, self.rule, setting.outer, self.intern)
        self.match = Match(self.a, self.b, self.anchors, self.intern)
        self.common_values = set(self.match.forward[0]) & set(self.match.forward[1])
        self.inputs = self.anchors.inputs | self._renamed_inputs()
        self.initializers = pair_initializers(self.a, self.b, self._operand_pairs())
        self.initializer_of = (self.initializers, {j: i for i, j in self.initializers.items()})

    def changes(self) -> list[Change]:
        """Everything that differs."""
        found = [*self._ports("inputs"), *self._ports("outputs"), *self._port_order()]
        if not self.options.initializers:
            found += initializer_changes(
                (self.a, self.b), self.initializers, self.scope, storage_counts=not self.options.storage
            )
        for side, (view, partner) in enumerate(((self.a, self.match.to_b), (self.b, self.match.to_a))):
            for i, other in enumerate(partner):
                if other < 0:
                    text, op_type = self.say[side].node(i), op_name(view.nodes[i])
                    found.append(
                        Change("nodes", "removed", self.scope, op_type, before=text)
                        if side == 0
                        else Change("nodes", "added", self.scope, op_type, after=text)
                    )
        for i, j in self.match.pairs():
            found += self._node_changes(i, j)
        return found

    # -- operands ----------------------------------------------------------------------------------------------------

    def same(self, x: Operand, y: Operand) -> bool:
        """Whether two operands mean the same value."""
        if x.source == y.source == INITIALIZER:
            t, u = self.a.initializers[x.entry][1], self.b.initializers[y.entry][1]
            if self.options.initializers:
                return t[:2] == u[:2]
            return self.initializers.get(x.entry) == y.entry or (t.digest is not None and t[:3] == u[:3])
        if x.source == y.source == INPUT:
            return self.inputs.get(x.entry) == y.entry
        return self.match.same(x, y)

    def _operand_pairs(self) -> list[tuple[Operand, Operand]]:
        """Operands that face each other in matched nodes and outputs."""
        facing: list[tuple[Operand, Operand]] = []
        for i, j in self.match.pairs():
            left, right = self.a.nodes[i], self.b.nodes[j]
            if left.is_commutative:
                equal, gone, new = _align(left.operands, right.operands, self.match.same)
                facing += [*equal, *zip(gone, new, strict=False)]
            else:
                facing += zip(left.operands, right.operands, strict=False)
        facing += [(self.a.outputs[i].operand, self.b.outputs[j].operand) for i, j in self.anchors.outputs.items()]
        return facing

    def _renamed_inputs(self) -> dict[int, int]:
        """Inputs without a partner of their name whose readers correspond: renamed."""
        taken = set(self.anchors.inputs.values())
        votes: Counter[tuple[int, int]] = Counter()
        for x, y in self._operand_pairs() if len(self.anchors.inputs) < len(self.a.inputs) else ():
            if x.source == y.source == INPUT and x.entry not in self.anchors.inputs and y.entry not in taken:
                votes[x.entry, y.entry] += 1
        renamed: dict[int, int] = {}
        for (i, j), _ in sorted(votes.items(), key=lambda item: (-item[1], item[0])):
            if i not in renamed and j not in taken:
                renamed[i] = j
                taken.add(j)
        return renamed

    # -- inputs and outputs ------------------------------------------------------------------------------------------

    def _ports(self, section: str) -> Iterable[Change]:
        is_input = section == "inputs"
        left, right = (self.a.inputs, self.b.inputs) if is_input else (self.a.outputs, self.b.outputs)
        pairs = dict(self.inputs if is_input else self.anchors.outputs)
        if not is_input:
            pairs |= self._renamed_outputs()
        for i, port in enumerate(left):
            if i not in pairs:
                yield Change(section, "removed", self.scope, before=self._port_text(port, i))
        partners = set(pairs.values())
        for j, port in enumerate(right):
            if j not in partners:
                yield Change(section, "added", self.scope, after=self._port_text(port, j))
        for i, j in sorted(pairs.items()):
            yield from self._port_change(section, i, j, left[i], right[j])

    def _renamed_outputs(self) -> dict[int, int]:
        """Outputs without a partner of their name that give the same value: renamed."""
        partners = set(self.anchors.outputs.values())
        free: dict[int, list[int]] = {}
        for j in range(len(self.b.outputs) - 1, -1, -1):
            if j not in partners:
                free.setdefault(self._token(1, self.b.outputs[j].operand), []).append(j)
        return {
            i: same.pop()
            for i, port in enumerate(self.a.outputs)
            if i not in self.anchors.outputs and (same := free.get(self._token(0, port.operand)))
        }

    def _port_text(self, port: Port, index: int) -> str:
        if self.rule.by_position:
            return f"{index}: {port.name}"
        return f"{port.name}: {self._type(port)}"

    def _type(self, port: Port) -> str:
        return port.type_text + ("" if self.options.shapes else port.shape_text)

    def _port_change(self, section: str, i: int, j: int, x: Port, y: Port) -> Iterable[Change]:
        details = []
        if not self.rule.by_position:
            if self.rule.names_count and x.name != y.name:
                details.append(Detail("name", x.name, y.name))
            types = self._type(x), self._type(y)
            if not self.rule.names_count:
                types = _without_dim_names(types[0]), _without_dim_names(types[1])
            if types[0] != types[1]:
                details.append(Detail("type", self._type(x), self._type(y)))
        names = (f"{i}", f"{j}") if self.rule.by_position else (x.name, y.name)
        rewired = section == "outputs" and not self.same(x.operand, y.operand)
        if rewired:
            details.append(Detail("source", *self._differing(x.operand, y.operand)))
        if details:
            action = "rewired" if rewired and len(details) == 1 else "changed"
            yield Change(section, action, self.scope, before=names[0], after=names[1], details=tuple(details))

    def _port_order(self) -> Iterable[Change]:
        if self.rule.by_position:
            return
        for section, pairs, ports in (
            ("inputs", self.inputs, (self.a.inputs, self.b.inputs)),
            ("outputs", self.anchors.outputs, (self.a.outputs, self.b.outputs)),
        ):
            now = [pairs[i] for i in sorted(pairs)]
            if now != sorted(now):
                orders = [
                    ", ".join(side[k].name for k in sorted(chosen))
                    for side, chosen in zip(ports, (list(pairs), list(pairs.values())), strict=True)
                ]
                yield Change(section, "changed", self.scope, "", "order", "order", (Detail("order", *orders),))

    # -- nodes -------------------------------------------------------------------------------------------------------

    def _node_changes(self, i: int, j: int) -> list[Change]:
        x, y = self.a.nodes[i], self.b.nodes[j]
        found: list[Change] = []
        details = self._attribute_details(x, y)
        for name in sorted(x.graphs.keys() & y.graphs.keys()):
            if len(x.graphs[name]) == len(y.graphs[name]):
                for n, bodies in enumerate(zip(x.graphs[name], y.graphs[name], strict=True)):
                    label = f"{op_name(x)}.{name}" + (f"[{n}]" if len(x.graphs[name]) > 1 else "")
                    found += self._body_changes(x, y, bodies, label)
        if x.outputs != y.outputs:
            details.append(Detail("outputs", _present(x.outputs), _present(y.outputs)))
        action = "changed" if details else "rewired"
        details += self._operand_details(x, y)
        if details:
            texts = self.say[0].node(i), self.say[1].node(j)
            found.append(Change("nodes", action, self.scope, op_name(x), *texts, details=tuple(details)))
        return found

    @staticmethod
    def _attribute_details(x: NodeView, y: NodeView) -> list[Detail]:
        details = []
        for name in sorted({*x.attributes, *x.graphs, *y.attributes, *y.graphs}):
            # Bodies are compared on their own: here only how many there are counts.
            tokens = [node.attributes.get(name, len(node.graphs.get(name, ()))) for node in (x, y)]
            if tokens[0] == tokens[1]:
                continue
            found = [node.source.attributes.get(name) for node in (x, y)]
            texts = ["" if attribute is None else attribute_text(attribute) for attribute in found]
            if texts[0] == texts[1]:
                texts = ["" if attribute is None else attribute_text(attribute, exact=True) for attribute in found]
            details.append(Detail(name, *texts))
        return details

    def _operand_details(self, x: NodeView, y: NodeView) -> list[Detail]:
        if x.is_commutative:
            _, gone, new = _align(x.operands, y.operands, self.same)
            pairs = [(0, p, q) for p, q in zip_longest(gone, new)]
        else:
            both = enumerate(zip_longest(x.operands, y.operands))
            pairs = [(n, p, q) for n, (p, q) in both if p is None or q is None or not self.same(p, q)]
        details = []
        for n, p, q in pairs:
            slot = self.say[0].slot(x, n) if p is not None else self.say[1].slot(y, n)
            details.append(Detail(slot, *self._differing(p, q)))
        return details

    def _differing(self, x: Operand | None, y: Operand | None) -> tuple[str, str]:
        """Texts of two different operands, as short as they can be and still differ."""
        if x is None or y is None:
            return ("" if x is None else self.say[0].operand(x)), ("" if y is None else self.say[1].operand(y))
        for depth in range(_DEEPEST + 1):
            texts = self.say[0].operand(x, depth), self.say[1].operand(y, depth)
            if texts[0] != texts[1]:
                return texts
        shallow = self.say[0].operand(x), self.say[1].operand(y)
        return f"{shallow[0]} (no. {x.entry})", f"{shallow[1]} (no. {y.entry}, another)"

    def _body_changes(self, x: NodeView, y: NodeView, bodies: tuple[GraphView, GraphView], label: str) -> list[Change]:
        outer = (
            {value: self._token(0, operand) for value, operand in x.captured.items()},
            {value: self._token(1, operand) for value, operand in y.captured.items()},
        )
        describers = self.say[0].inner(bodies[0], x), self.say[1].inner(bodies[1], y)
        rule = PortRule(by_position=True)
        inner = dataclasses.replace(self.setting, rule=rule, scope=(*self.scope, label), outer=outer)
        return compare_graphs(describers, inner)

    def _token(self, side: int, operand: Operand) -> int:
        """Equal for values of this graph that are the same on both sides."""
        if operand.source == NODE:
            value = self.match.forward[side][operand.entry]
            if value in self.common_values:
                return self.intern("value", value, operand.output)
            partner = (self.match.to_b, self.match.to_a)[side][operand.entry]
            pair = operand.entry if side == 0 or partner < 0 else partner
            return self.intern("pair", self.scope, side if partner < 0 else -1, pair, operand.output)
        if operand.source == INITIALIZER and self.options.initializers:
            return self.intern("initializer type", self.say[side].view.initializers[operand.entry][1][:2])
        if operand.source == INITIALIZER:
            facing = self.initializer_of[side].get(operand.entry)
            if facing is not None:
                return self.intern("initializer", self.scope, operand.entry if side == 0 else facing)
        return self.anchors.leaves[side][operand]


def _align(
    left: Iterable[Operand], right: Iterable[Operand], same: Callable[[Operand, Operand], bool]
) -> tuple[list[tuple[Operand, Operand]], list[Operand], list[Operand]]:
    """Operands without an order: those that are the same, and the rest of either side."""
    equal, gone, new = [], [], list(right)
    for x in left:
        partner = next((n for n, y in enumerate(new) if same(x, y)), None)
        if partner is None:
            gone.append(x)
        else:
            equal.append((x, new.pop(partner)))
    return equal, gone, new


def _present(outputs: tuple[bool, ...]) -> str:
    return str([i for i, present in enumerate(outputs) if present])


def _without_dim_names(text: str) -> str:
    return re.sub(r"(?<=[\[,])[^\d,\]][^,\]]*", "?", text)
