"""Prove what a boolean attention mask means, by interpreting the subgraph that computes it.

A mask is understood if it is a conjunction of

    j ≤ i            causality                (i, j: positions of query and key, from the first past token)
    j > i − W        a sliding window of W    (W keys, the query's own included)
    padding[b, j]    real tokens              (a graph input [B, T], 1 = real)

in whatever spelling: the interpreter carries positions as linear forms over the symbolic dimensions, so that
`LessOrEqual(kv, q)`, `Not(Greater(kv, q))` and `Less(Sub(kv, q), 1)` are the same thing. Everything else is declined
with a sentence that names the node at fault. Nothing is assumed about what is not understood.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from deltallm_onnx.passes.affine import ONE, Affine, dimension
from deltallm_onnx.passes.mask_domain import AtLeastZero, Condition, RealToken
from deltallm_onnx.passes.mask_interpreter import MaskInterpreter
from deltallm_onnx.passes.site import MaskMeaning, NotUnderstood


@dataclasses.dataclass(frozen=True)
class MaskContract:
    """What the attention operator itself guarantees about the lengths of its mask [B, Hq, S, T].

    With a past, the mask covers past and new tokens; the shorter masks of opset 24 belong to caches kept outside the
    operator, which have no past input.

    Attributes:
        past_length: P, from the shape of past_key.
        new_length: S, from the shape of the query.
    """

    past_length: Affine
    new_length: Affine

    @property
    def total_length(self) -> Affine:
        """T = P + S."""
        return self.past_length + self.new_length


def read_mask(mask: ir.Value, contract: MaskContract, interpreter: MaskInterpreter) -> MaskMeaning:
    """Say what a boolean mask [B|1, 1, S, T] (or [S, T]) hides.

    Args:
        mask: the attention operator's mask input.
        contract: the lengths its axes must have.
        interpreter: evaluates nodes; one instance serves all layers of a model.

    Raises:
        NotUnderstood: with the reason, where the meaning cannot be proven.
    """
    condition = interpreter.evaluate(mask)
    if not isinstance(condition, Condition):
        raise NotUnderstood(f"its mask {_name(mask)} holds numbers, not truth values")
    if condition.is_constant() and condition.negated:
        raise NotUnderstood(f"its mask {_name(mask)} is false everywhere")
    if condition.negated:
        raise NotUnderstood(
            f"its mask {_name(mask)} is a disjunction, not a conjunction of causality, window and padding"
        )
    lengths = _Lengths(contract)
    for term in condition.terms:
        lengths.learn(term)
    causal, windows, padding = False, [], None
    for term in sorted(condition.terms, key=repr):
        lengths.require(term)
        if isinstance(term, RealToken):
            if padding is not None and padding is not term.source:
                raise NotUnderstood(
                    f"its mask takes padding from two inputs, {_name(padding)} and {_name(term.source)}"
                )
            padding = term.source
            continue
        window = lengths.classify(term)
        if window == 0:
            causal = True
        elif window is not None:
            windows.append(window)
    return MaskMeaning(causal, min(windows, default=None), padding)


class _Lengths:
    """The lengths P and S, and what the mask's own axes tell about other symbols."""

    def __init__(self, contract: MaskContract) -> None:
        self._contract = contract
        self._known: dict[str, Affine] = {}
        self._own = {name for name, _ in contract.total_length.terms}

    def learn(self, term: AtLeastZero | RealToken) -> None:
        """Solve for foreign symbols: the mask's last axis has length T, the one before it S, or the model cannot run.

        Only symbols other than those of P and S are solved for, or a wrong length would be explained away.
        """
        for axis, length in _axis_lengths(term):
            expected = self._expected(axis)
            if expected is None:
                continue
            rest = (length - expected).substitute(self._known)
            pivot = next((n for n, c in rest.terms if abs(c) == 1 and n not in self._own), None)
            if pivot is not None:
                solution = Affine.symbol(pivot) - rest.scaled(rest.coefficient(pivot))
                self._known = {n: v.substitute({pivot: solution}) for n, v in self._known.items()}
                self._known[pivot] = solution

    def require(self, term: AtLeastZero | RealToken) -> None:
        """Refuse a term that runs along other axes than the mask's queries and keys."""
        if isinstance(term, RealToken) and (term.batch_axis, term.key_axis) != (-4, -1):
            raise NotUnderstood(
                f"its padding mask {_name(term.source)} lies on axes {term.batch_axis} and {term.key_axis} of the mask "
                "instead of -4 (batch) and -1 (keys)"
            )
        for axis, length in _axis_lengths(term):
            expected = self._expected(axis)
            if expected is None:
                raise NotUnderstood(f"its mask compares positions along axis {axis}, which is neither queries nor keys")
            if (length - expected).substitute(self._known) != Affine(0):
                wrong = length.substitute(self._known)
                raise NotUnderstood(f"its mask has {wrong} positions along axis {axis} where {expected} are needed")

    def classify(self, term: AtLeastZero) -> int | None:
        """0 for causality, W for a sliding window of W keys, None for a condition that always holds."""
        steps = {axis: step for axis, step, _ in term.steps}
        query, key = steps.get(-2, 0), steps.get(-1, 0)
        base = term.base.substitute(self._known)
        if self._always_holds(base, query, key):
            return None
        past = self._contract.past_length
        offset = base - past if (query, key) == (1, -1) else base + past
        if offset.is_constant() and (query, key) == (1, -1):
            if offset.const:
                raise NotUnderstood(
                    f"its mask lets query i see keys j ≤ i {offset.const:+d}, which is off by {abs(offset.const)} "
                    "from causality (j ≤ i)"
                )
            return 0
        if offset.is_constant() and (query, key) == (-1, 1):
            if offset.const < 0:
                raise NotUnderstood(f"its sliding window holds {offset.const + 1} keys, so a query does not see itself")
            return offset.const + 1
        raise NotUnderstood(
            f"its mask asks for {_inequality(base, query, key)} (i: new query, j: key), which is neither causality "
            f"(j ≤ i + {past}) nor a sliding window (j > i + {past} - W)"
        )

    def _always_holds(self, base: Affine, query: int, key: int) -> bool:
        """Whether base + query·i + key·j ≥ 0 for all 0 ≤ i < S and 0 ≤ j < T, given S ≥ 1 and other lengths ≥ 0."""
        lowest = base
        if query < 0:
            lowest += (self._contract.new_length - ONE).scaled(query)
        if key < 0:
            lowest += (self._contract.total_length - ONE).scaled(key)
        slack, new = lowest.const, self._contract.new_length
        if not new.is_constant() and len(new.terms) == 1 and new.const == 0:
            slack += max(lowest.coefficient(new.terms[0][0]), 0)
        return slack >= 0 and all(c > 0 for _, c in lowest.terms)

    def _expected(self, axis: int) -> Affine | None:
        return {-1: self._contract.total_length, -2: self._contract.new_length}.get(axis)


def _axis_lengths(term: AtLeastZero | RealToken) -> list[tuple[int, Affine]]:
    if isinstance(term, RealToken):
        # A padding mask on the wrong axis is refused by its axis; its length says nothing there.
        return [(-1, dimension(term.source, 1))] if term.key_axis == -1 else []
    return [(axis, length) for axis, _, length in term.steps]


def _inequality(base: Affine, query: int, key: int) -> str:
    return f"{base + Affine(0, (('i', query),)) + Affine(0, (('j', key),))} ≥ 0"


def _name(value: ir.Value) -> str:
    return repr(value.name)
