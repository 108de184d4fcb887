"""The result of a comparison: a flat list of changes, as text and as JSON-ready values."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from typing import Any

from deltallm_onnx.diff.grouping import Line, collapse
from deltallm_onnx.errors import DeltaLLMError

#: What changes are about, in the order of the text.
SECTIONS = ("versions", "inputs", "outputs", "initializers", "functions", "nodes", "metadata")
ACTIONS = ("removed", "added", "rewired", "changed")
_SIGNS = {"removed": "-", "added": "+", "rewired": "~", "changed": "~"}
_MIRRORED = {"removed": "added", "added": "removed"}
FORMAT = "deltallm-onnx graph diff"
VERSION = 1


@dataclasses.dataclass(frozen=True, order=True)
class Detail:
    """One property that differs.

    Attributes:
        field: what it is: an attribute's name, "input 1 (K)", "type", "shape", "data", "storage", "source" …
        before: its value in the first model, "" where it is absent.
        after: its value in the second model, "" where it is absent.
    """

    field: str
    before: str
    after: str

    def mirrored(self) -> Detail:
        """The same with first and second model exchanged."""
        return Detail(self.field, self.after, self.before)


@dataclasses.dataclass(frozen=True)
class Change:
    """One difference.

    Attributes:
        section: one of SECTIONS.
        action: "removed", "added", "rewired" (a node's inputs or an output's source) or "changed".
        scope: where: empty for the main graph, else functions and bodies from the outside in.
        op_type: operator, with its domain, for nodes; else "".
        before: description in the first model, "" if added.
        after: description in the second model, "" if removed.
        details: what differs, for "rewired" and "changed".
    """

    section: str
    action: str
    scope: tuple[str, ...] = ()
    op_type: str = ""
    before: str = ""
    after: str = ""
    details: tuple[Detail, ...] = ()

    def mirrored(self) -> Change:
        """The same with first and second model exchanged."""
        return dataclasses.replace(
            self,
            action=_MIRRORED.get(self.action, self.action),
            before=self.after,
            after=self.before,
            details=tuple(detail.mirrored() for detail in self.details),
        )

    @property
    def sort_key(self) -> tuple[Any, ...]:
        """Independent of names of nodes and of their order."""
        return (
            self.scope,
            SECTIONS.index(self.section),
            ACTIONS.index(self.action),
            self.before or self.after,
            self.after,
            self.details,
        )

    def line(self) -> str:
        """The change on one line, without its sign."""
        if self.section == "initializers" and [d.field for d in self.details] == ["storage"]:
            # Weights that merely lie in another file are one event, not one per weight.
            return f"stored in {self.details[0].before} → {self.details[0].after}"
        text = self.before or self.after
        if self.details:
            text += ": " + "; ".join(_detail_text(detail) for detail in self.details)
        return text


@dataclasses.dataclass(frozen=True)
class GraphDiff:
    """Differences between two models.

    Attributes:
        changes: all of them, sorted.
        nodes: nodes of the main graph (before, after).
    """

    changes: tuple[Change, ...]
    nodes: tuple[int, int]

    def __init__(self, changes: Iterable[Change], nodes: tuple[int, int]) -> None:
        object.__setattr__(self, "changes", tuple(sorted(changes, key=lambda change: change.sort_key)))
        object.__setattr__(self, "nodes", nodes)

    @property
    def is_empty(self) -> bool:
        """Whether nothing differs."""
        return not self.changes

    def select(self, section: str, action: str | None = None, scope: tuple[str, ...] = ()) -> list[Change]:
        """The changes of one section of one scope, of one action or of all."""
        return [
            c
            for c in self.changes
            if c.section == section and c.scope == scope and (action is None or c.action == action)
        ]

    def mirrored(self) -> GraphDiff:
        """The diff with first and second model exchanged."""
        return GraphDiff((change.mirrored() for change in self.changes), self.nodes[::-1])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; `from_dict` reads them back."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "is_empty": self.is_empty,
            "nodes": {"before": self.nodes[0], "after": self.nodes[1]},
            "counts": {
                section: {action: n for action in ACTIONS if (n := self._count(section, action))}
                for section in SECTIONS
                if any(change.section == section for change in self.changes)
            },
            "changes": [
                {
                    "section": change.section,
                    "action": change.action,
                    "scope": list(change.scope),
                    "op_type": change.op_type,
                    "before": change.before,
                    "after": change.after,
                    "details": [dataclasses.asdict(detail) for detail in change.details],
                }
                for change in self.changes
            ],
        }

    @classmethod
    def from_dict(cls, data: Any) -> GraphDiff:
        """Read what `to_dict` wrote.

        Raises:
            DeltaLLMError: for anything else.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT or data.get("version") != VERSION:
            raise DeltaLLMError(f"This is no {FORMAT} of version {VERSION}: make it again with this version.")
        try:
            changes = [
                Change(
                    **{
                        **change,
                        "scope": tuple(change["scope"]),
                        "details": tuple(Detail(**detail) for detail in change["details"]),
                    }
                )
                for change in data["changes"]
            ]
            return cls(changes, (data["nodes"]["before"], data["nodes"]["after"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DeltaLLMError(f"This {FORMAT} is malformed ({error}): make it again.") from error

    def to_text(self) -> str:
        """For people and for golden files: a header with counts, then one line per distinct change.

        Changes that differ only in the numbers of names (layers) share a line: `past_key_values.{0..3}.key … ×4`.
        """
        if self.is_empty:
            return "no differences\n"
        lines: list[str] = []
        for scope in dict.fromkeys(((), *(change.scope for change in self.changes))):
            if scope:
                lines += ["", f"in {' / '.join(scope)}"]
            lines += self._scope_text(scope)
        return "\n".join(lines) + "\n"

    def _scope_text(self, scope: tuple[str, ...]) -> list[str]:
        nodes = self.select("nodes", scope=scope)
        count = Counter(change.action for change in nodes)
        lines = []
        if not scope or nodes:
            total = f" {self.nodes[0]} → {self.nodes[1]}" if not scope else ""
            lines.append(f"nodes{total}: " + ", ".join(f"{count[action]} {action}" for action in ACTIONS))
        tally = Counter((c.action, c.op_type) for c in nodes if c.action in _MIRRORED)
        for action in _MIRRORED:
            lines += [f"  {_SIGNS[action]} {tally[a, op]} {op}" for a, op in sorted(tally) if a == action]
        for section in SECTIONS:
            for action in ACTIONS:
                changes = self.select(section, action, scope)
                if changes:
                    lines += ["", f"{section} {action}"]
                    lines += [
                        f"  {_SIGNS[action]} {line.text}" + (f"  ×{line.times}" if line.times > 1 else "")
                        for line in _collapsed(changes)
                    ]
        return lines

    def _count(self, section: str, action: str) -> int:
        return sum(change.section == section and change.action == action for change in self.changes)


def _collapsed(changes: Iterable[Change]) -> list[Line]:
    return collapse(change.line() for change in changes)


def _detail_text(detail: Detail) -> str:
    return f"{detail.field} {detail.before or '(none)'} → {detail.after or '(none)'}"
