"""What belongs to a model and not to one of its graphs: functions, versions, metadata."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping

import onnx_ir as ir

from deltallm_onnx.diff.compare import Options, Setting, compare_graphs
from deltallm_onnx.diff.describe import Describer, attribute_text
from deltallm_onnx.diff.hashing import Interner
from deltallm_onnx.diff.leaves import PortRule
from deltallm_onnx.diff.report import Change, Detail, GraphDiff
from deltallm_onnx.diff.view import GraphView, view_graph

Identifier = tuple[str, str, str]


@dataclasses.dataclass(frozen=True)
class ModelView:
    """A model with all its graphs indexed.

    Attributes:
        source: the model.
        graph: its main graph.
        functions: its functions' bodies.
    """

    source: ir.Model
    graph: GraphView
    functions: Mapping[Identifier, GraphView]

    @classmethod
    def of(cls, model: ir.Model, *, contents: bool) -> ModelView:
        """Index a model; `contents` False leaves the data of initializers unread."""
        functions = {key: view_graph(function) for key, function in model.functions.items()}
        return cls(model, view_graph(model.graph, contents=contents), functions)

    def describer(self, function: Identifier | None = None) -> Describer:
        """Words for the main graph, or for a function's body."""
        signatures = {key: [port.name for port in body.inputs] for key, body in self.functions.items()}
        if function is None:
            return Describer(self.graph, signatures, self.source.opset_imports)
        opsets = self.source.functions[function].opset_imports
        return Describer(self.functions[function], signatures, opsets)

    def rank(self) -> bytes:
        """A fixed order of models: comparing always starts from the same one of two."""
        state = hashlib.blake2b()
        for graph in (self.graph, *self.functions.values()):
            _feed(state, graph)
        state.update(repr(sorted(_metadata(self.source).items())).encode())
        state.update(repr(sorted(_versions(self.source).items())).encode())
        return state.digest()


def compare_models(a: ModelView, b: ModelView, options: Options) -> GraphDiff:
    """All changes from one model to another, mirrored if they are exchanged."""
    # Where nodes are alike the pairs depend on who comes first: let that not be the caller.
    return _compare(a, b, options) if a.rank() <= b.rank() else _compare(b, a, options).mirrored()


def _compare(a: ModelView, b: ModelView, options: Options) -> GraphDiff:
    setting = Setting(options, PortRule(names_count=not options.names), Interner())
    changes = compare_graphs((a.describer(), b.describer()), setting)
    changes += _functions(a, b, setting)
    changes += _table("versions", _versions(a.source), _versions(b.source))
    if not options.metadata:
        changes += _table("metadata", _metadata(a.source), _metadata(b.source))
    return GraphDiff(changes, (len(a.graph.nodes), len(b.graph.nodes)))


def _functions(a: ModelView, b: ModelView, setting: Setting) -> Iterable[Change]:
    for key in sorted({*a.functions, *b.functions}):
        if key not in b.functions:
            yield Change("functions", "removed", before=_function_text(key, a.functions[key]))
        elif key not in a.functions:
            yield Change("functions", "added", after=_function_text(key, b.functions[key]))
        else:
            details = _function_details(a.source.functions[key], b.source.functions[key])
            if details:
                yield Change("functions", "changed", (), "", _name(key), _name(key), details)
            describers = a.describer(key), b.describer(key)
            rule, scope = PortRule(by_position=True), (f"function {_name(key)}",)
            yield from compare_graphs(describers, dataclasses.replace(setting, rule=rule, scope=scope))


def _function_details(x: ir.Function, y: ir.Function) -> tuple[Detail, ...]:
    tables = [
        {f"opset {domain or 'ai.onnx'}": str(version) for domain, version in f.opset_imports.items()}
        | {f"attribute {name}": _default_text(attribute) for name, attribute in f.attributes.items()}
        for f in (x, y)
    ]
    return tuple(
        Detail(key, tables[0].get(key, ""), tables[1].get(key, ""))
        for key in sorted({*tables[0], *tables[1]})
        if tables[0].get(key) != tables[1].get(key)
    )


def _default_text(attribute: ir.Attr) -> str:
    return "required" if attribute.value is None else attribute_text(attribute, exact=True)


def _table(section: str, x: Mapping[str, str], y: Mapping[str, str]) -> Iterable[Change]:
    for key in sorted({*x, *y}):
        if key not in y:
            yield Change(section, "removed", before=f"{key}: {x[key]}")
        elif key not in x:
            yield Change(section, "added", after=f"{key}: {y[key]}")
        elif x[key] != y[key]:
            yield Change(section, "changed", (), "", key, key, (Detail("value", x[key], y[key]),))


def _versions(model: ir.Model) -> dict[str, str]:
    versions = {f"opset {domain or 'ai.onnx'}": str(version) for domain, version in model.opset_imports.items()}
    return {"ir_version": str(model.ir_version)} | versions


def _metadata(model: ir.Model) -> dict[str, str]:
    fields = {
        "producer_name": model.producer_name,
        "producer_version": model.producer_version,
        "domain": model.domain,
        "model_version": model.model_version,
        "doc_string": model.doc_string,
        "graph name": model.graph.name,
        "graph doc_string": model.graph.doc_string,
    }
    properties = {f"metadata_props {key}": value for key, value in model.metadata_props.items()}
    properties |= {f"graph metadata_props {key}": value for key, value in model.graph.metadata_props.items()}
    return {key: str(value) for key, value in fields.items() if value} | properties


def _name(key: Identifier) -> str:
    domain, name, overload = key
    return f"{domain}::{name}{f':{overload}' if overload else ''}"


def _function_text(key: Identifier, body: GraphView) -> str:
    sizes = f"{len(body.inputs)} inputs, {len(body.outputs)} outputs, {len(body.nodes)} nodes"
    return f"{_name(key)} ({sizes})"


def _feed(state: hashlib.blake2b, graph: GraphView) -> None:
    state.update(repr((graph.inputs, graph.outputs, graph.initializers)).encode())
    for node in graph.nodes:
        state.update(
            repr(
                (node.kind, sorted(node.attributes.items()), node.operands, tuple(node.captured.values()), node.outputs)
            ).encode()
        )
        for name, bodies in node.graphs.items():
            state.update(name.encode())
            for body in bodies:
                _feed(state, body)
