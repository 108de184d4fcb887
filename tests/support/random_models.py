"""Random DAG models with known edits: the ground truth for the graph diff."""

from __future__ import annotations

import copy
import random

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

#: (operator, operands, outputs); Pick is ours: it takes anything.
_OPERATORS = [
    ("Relu", 1, 1),
    ("Neg", 1, 1),
    ("Add", 2, 1),
    ("Sub", 2, 1),
    ("Mul", 2, 1),
    ("Pick", 3, 1),
    ("Pair", 2, 2),
]
_DOMAIN = "test.diff"


def random_model(seed: int, nodes: int, *, distinct: bool) -> onnx.ModelProto:
    """A random model with 3 inputs, initializers, dead ends and 1 to 4 outputs.

    Args:
        seed: of everything.
        nodes: how many.
        distinct: every node carries an attribute of its own; otherwise many nodes are alike, twins included.
    """
    rng = random.Random(seed)
    inputs = [helper.make_tensor_value_info(f"in_{i}", TensorProto.FLOAT, [i + 2, "D"]) for i in range(3)]
    initializers = [
        numpy_helper.from_array(np.full(7, rng.randrange(3), np.float32), "w.0"),
        numpy_helper.from_array(np.arange(5, dtype=np.float32) + rng.randrange(3), "w.1"),
        numpy_helper.from_array(np.array([rng.randrange(3), 2], np.int64), "val_0"),
        numpy_helper.from_array(np.array([rng.randrange(3), 2], np.int64), "val_1"),
    ]
    values = [v.name for v in inputs] + [t.name for t in initializers]
    made: list[onnx.NodeProto] = []
    for n in range(nodes):
        op, arity, results = rng.choice(_OPERATORS)
        # Recent values are preferred: chains, as in networks, not only bushes.
        operands = [rng.choice(values[-6:] if rng.random() < 0.6 else values) for _ in range(arity)]
        outputs = [f"v{n}_{k}" for k in range(results)]
        node = helper.make_node(op, operands, outputs, f"node_{n}", domain=_DOMAIN if op in ("Pick", "Pair") else "")
        if distinct:
            node.attribute.append(helper.make_attribute("tag", n))
        elif op == "Pick":
            node.attribute.append(helper.make_attribute("axis", rng.randrange(2)))
        made.append(node)
        values += outputs
    produced = [name for node in made for name in node.output]
    chosen = [produced[-1], *rng.sample(produced[:-1], min(len(produced) - 1, rng.randrange(4)))]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in chosen]
    graph = helper.make_graph(made, "random", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(_DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def disguised(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """The same model with every node, inner value and initializer renamed and in another topological order."""
    rng = random.Random(seed)
    model = copy.deepcopy(model)
    graph = model.graph
    kept = {v.name for v in (*graph.input, *graph.output)}
    names: dict[str, str] = {}

    def renamed(name: str) -> str:
        return name if not name or name in kept else names.setdefault(name, f"x{seed % 97}_{len(names)}")

    ready = {v.name for v in graph.input} | {t.name for t in graph.initializer} | {""}
    waiting, order = list(graph.node), []
    while waiting:
        node = rng.choice([n for n in waiting if set(n.input) <= ready])
        waiting.remove(node)
        order.append(node)
        ready |= set(node.output)
    for node in order:
        node.name = f"renamed_{rng.randrange(10**6)}"
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
    tensors = list(graph.initializer)
    rng.shuffle(tensors)
    for tensor in tensors:
        tensor.name = renamed(tensor.name)
    nodes, shuffled = [copy.deepcopy(n) for n in order], [copy.deepcopy(t) for t in tensors]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(shuffled)
    return model


def in_a_branch(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model's nodes and initializers as the body of an If that captures the inputs."""
    body, graph = copy.deepcopy(model.graph), onnx.GraphProto(name="around")
    graph.input.extend(body.input)
    graph.input.append(helper.make_tensor_value_info("condition", TensorProto.BOOL, []))
    del body.input[:]
    other = helper.make_graph(
        [], "other", [], [helper.make_tensor_value_info(v.name, 1, None) for v in graph.input[:1]]
    )
    results = [f"result_{n}" for n in range(len(body.output))]
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in results)
    graph.node.append(helper.make_node("If", ["condition"], results, then_branch=body, else_branch=other))
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def in_a_function(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model's nodes as a function, called with its inputs and its initializers in the order of their content."""
    graph = copy.deepcopy(model.graph)
    tensors = sorted(graph.initializer, key=lambda t: (tuple(t.dims), t.raw_data))
    values, results = [v.name for v in graph.input] + [t.name for t in tensors], [v.name for v in graph.output]
    function = helper.make_function(_DOMAIN, "Whole", values, results, graph.node, model.opset_import)
    del graph.node[:]
    graph.node.append(helper.make_node("Whole", values, results, domain=_DOMAIN))
    made = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    made.functions.append(function)
    return made
