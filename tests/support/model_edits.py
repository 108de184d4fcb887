"""One known edit of a random model, and what a diff has to say about it."""

from __future__ import annotations

import copy
import dataclasses
import random

import onnx
from onnx import helper

EDITS = ("insert", "bypass", "rewire", "retag", "replace", "dangle")


@dataclasses.dataclass(frozen=True)
class Expected:
    """Counts of node changes, and outputs that read something else afterwards."""

    removed: int = 0
    added: int = 0
    rewired: int = 0
    changed: int = 0
    outputs: frozenset[str] = frozenset()

    @property
    def total(self) -> int:
        return self.removed + self.added + self.rewired + self.changed


def edited(model: onnx.ModelProto, kind: str, seed: int) -> tuple[onnx.ModelProto, Expected] | None:
    """A copy with one edit of the given kind; None where the model has no place for it.

    insert: a new node on one edge. bypass: a node is taken out, its readers read its first operand. rewire: one
    operand of one node becomes another value. retag: one attribute gets another value. replace: a node becomes
    another operator. dangle: a new node that nobody reads.
    """
    rng = random.Random(seed)
    model = copy.deepcopy(model)
    return {
        "insert": _insert,
        "bypass": _bypass,
        "rewire": _rewire,
        "retag": _retag,
        "replace": _replace,
        "dangle": _dangle,
    }[kind](model, rng)


def _readers(graph: onnx.GraphProto, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    return [other for other in graph.node if set(other.input) & set(node.output)]


def _new_name(graph: onnx.GraphProto) -> str:
    taken = {name for node in graph.node for name in node.output}
    return next(name for n in range(len(taken) + 1) if (name := f"fresh_{n}") not in taken)


def _insert(model: onnx.ModelProto, rng: random.Random) -> tuple[onnx.ModelProto, Expected]:
    graph = model.graph
    place = rng.randrange(len(graph.node))
    reader = graph.node[place]
    slot = rng.randrange(len(reader.input))
    node = helper.make_node("Fresh", [reader.input[slot]], [_new_name(graph)], domain="test.diff")
    reader.input[slot] = node.output[0]
    nodes = [copy.deepcopy(n) for n in graph.node]
    nodes.insert(place, node)
    del graph.node[:]
    graph.node.extend(nodes)
    return model, Expected(added=1, rewired=1)


def _bypass(model: onnx.ModelProto, rng: random.Random) -> tuple[onnx.ModelProto, Expected] | None:
    graph = model.graph
    named = {v.name for v in graph.output}
    # An output that loses its node would have to be renamed: another kind of edit.
    places = [i for i, n in enumerate(graph.node) if len(n.output) == 1 and not set(n.output) & named]
    if not places:
        return None
    node = graph.node[rng.choice(places)]
    readers = _readers(graph, node)
    for reader in readers:
        reader.input[:] = [node.input[0] if name == node.output[0] else name for name in reader.input]
    graph.node.remove(node)
    return model, Expected(removed=1, rewired=len(readers))


def _rewire(model: onnx.ModelProto, rng: random.Random) -> tuple[onnx.ModelProto, Expected]:
    graph = model.graph
    place = rng.randrange(len(graph.node))
    node = graph.node[place]
    slot = rng.randrange(len(node.input))
    earlier = [v.name for v in graph.input] + [name for n in graph.node[:place] for name in n.output]
    node.input[slot] = rng.choice([name for name in earlier if name not in node.input] or ["in_0"])
    return model, Expected(rewired=1)


def _retag(model: onnx.ModelProto, rng: random.Random) -> tuple[onnx.ModelProto, Expected] | None:
    nodes = [n for n in model.graph.node if n.attribute]
    if not nodes:
        return None
    rng.choice(nodes).attribute[0].i += 100_000
    return model, Expected(changed=1)


def _replace(model: onnx.ModelProto, rng: random.Random) -> tuple[onnx.ModelProto, Expected]:
    graph = model.graph
    node = rng.choice(graph.node)
    readers = _readers(graph, node)
    node.op_type, node.domain = "Fresh", "test.diff"
    named = frozenset(v.name for v in graph.output) & frozenset(node.output)
    return model, Expected(removed=1, added=1, rewired=len(readers), outputs=named)


def _dangle(model: onnx.ModelProto, rng: random.Random) -> tuple[onnx.ModelProto, Expected]:
    graph = model.graph
    values = [name for n in graph.node for name in n.output]
    graph.node.append(helper.make_node("Fresh", [rng.choice(values)], [_new_name(graph)], domain="test.diff"))
    return model, Expected(added=1)
