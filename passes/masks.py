"""Prove what an attention mask means, by interpreting the subgraph that computes it.

A mask is understood if it is a conjunction of

    j ≤ i            causality                (i, j: positions of query and key, from the first past token)
    j > i − W        a sliding window of W    (W keys, the query's own included)
    padding[b, j]    real tokens              (a graph input [B, T], 1 = real)

in whatever spelling: the interpreter carries positions as linear forms over the symbolic dimensions, so that
`LessOrEqual(kv, q)`, `Not(Greater(kv, q))` and `Less(Sub(kv, q), 1)` are the same thing. A mask of numbers is
understood if they are 0 where that conjunction holds and −∞ or nearly (`mask_additive.HIDING`) elsewhere. Everything
else is declined with a sentence that names the node at fault. Nothing is assumed about what is not understood.

The padding mask has the shape [B, T]: a longer one DeltaAttention refuses, with a shorter one the graph as it was could
not be run. A query that sees no key at all is one of the padding: what dense graphs give for it (NaN, or the mean of
all values) is not kept, DeltaAttention gives 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import onnx_ir as ir

from deltallm_onnx.passes.affine import ONE, Affine, Capped, dimension
from deltallm_onnx.passes.mask_additive import FLOATS, HIDING, hides
from deltallm_onnx.passes.mask_domain import Abstract, AtLeastZero, Choice, Condition, RealToken, invert, kind
from deltallm_onnx.passes.mask_interpreter import MaskInterpreter
from deltallm_onnx.passes.site import MaskMeaning, NotUnderstood

#: A bias has fewer nodes behind it, unless it is computed from the tokens.
_MAX_BIAS_NODES = 500
#: A bias holds no number so large, unless it is meant to hide.
_LARGE = 65504.0


class FiniteBias(NotUnderstood):
    """A bias that hides no key, such as ALiBi: no number behind it is −∞ or nearly.

    It can be added to the scores as it is, where another mask is proven to be causal.
    """


@dataclasses.dataclass(frozen=True)
class MaskContract:
    """What the attention itself guarantees about the lengths of its mask [B, Hq, S, T].

    The mask covers past and new tokens; the shorter masks of opset 24 belong to caches kept outside the operator, which
    have no past input.

    Attributes:
        past_length: P, from the shape of past_key.
        new_length: S, from the shape of the query.
        batch: B, from the shape of past_key; None where only the padding mask's own first axis is to be trusted.
        heads: Hq; None where it is not compared.
        totals: what the graph calls T elsewhere, as the lengths of presents.
    """

    past_length: Affine
    new_length: Affine
    batch: Affine | None = None
    heads: int | None = None
    totals: tuple[Affine, ...] = ()

    @property
    def total_length(self) -> Affine:
        """T = P + S."""
        return self.past_length + self.new_length


def read_mask(mask: ir.Value, contract: MaskContract, interpreter: MaskInterpreter) -> MaskMeaning:
    """Say what a mask [B|1, 1, S, T] (or [S, T]) hides.

    Args:
        mask: truth values, true where a key is seen, or numbers that are added to the scores.
        contract: the lengths its axes must have.
        interpreter: evaluates nodes; one instance serves all layers of a model.

    Raises:
        FiniteBias: where the mask is numbers of which none hides a key.
        NotUnderstood: with the reason, where the meaning cannot be proven.
    """
    try:
        value = interpreter.evaluate(mask)
    except NotUnderstood as reason:
        if _is_finite_bias(mask):
            raise FiniteBias(f"its bias {_name(mask)} is no mask of 0 and −∞ ({reason})") from reason
        raise
    return _meaning(mask, _seen(mask, value), contract)


def read_hidden(mask: ir.Value, contract: MaskContract, interpreter: MaskInterpreter) -> MaskMeaning:
    """The same for truth values that are true where a key is hidden, as in Where(mask, −∞, scores).

    Raises:
        NotUnderstood: with the reason, where the meaning cannot be proven.
    """
    condition = interpreter.evaluate(mask)
    if not isinstance(condition, Condition):
        raise NotUnderstood(f"its mask {_name(mask)} holds {kind(condition)}, not truth values")
    return _meaning(mask, invert(condition), contract)


def is_hiding(value: ir.Value) -> bool:
    """Whether a value is the same constant all over that hides a key where it replaces or joins its score."""
    try:
        constant = MaskInterpreter().evaluate(value)
    except NotUnderstood:
        return False
    return isinstance(constant, Choice) and constant.is_constant() and hides(constant.holds, constant.dtype)


def conjunction(first: MaskMeaning, second: MaskMeaning) -> MaskMeaning:
    """What two masks hide together, each applied to the same scores.

    Raises:
        NotUnderstood: where they take padding from two inputs.
    """
    if None not in (first.padding, second.padding) and first.padding is not second.padding:
        raise NotUnderstood(
            f"its masks take padding from two inputs, {first.padding and first.padding.name!r} and "
            f"{second.padding and second.padding.name!r}"
        )
    windows = [window for window in (first.sliding_window, second.sliding_window) if window is not None]
    return MaskMeaning(first.causal or second.causal, min(windows, default=None), first.padding or second.padding)


def _seen(mask: ir.Value, value: Abstract) -> Condition:
    """Where a key is seen."""
    if isinstance(value, Condition):
        return value
    if not isinstance(value, Choice) or value.dtype not in FLOATS:
        raise NotUnderstood(f"its mask {_name(mask)} holds {kind(value)}, not truth values or numbers to add")
    numbers = " and ".join(f"{number + 0.0:g}" for number in dict.fromkeys((value.holds, value.fails)))
    if value.holds == 0 and (value.is_constant() or hides(value.fails, value.dtype)):
        return value.condition
    if value.is_constant() and hides(value.holds, value.dtype):
        raise NotUnderstood(f"its mask {_name(mask)} hides every key")
    raise NotUnderstood(
        f"its mask {_name(mask)} adds {numbers} to the scores, where 0 and −∞ (or {HIDING[value.dtype]:g} and below) "
        "are needed: keys that are only made less likely are not hidden"
    )


def _is_finite_bias(mask: ir.Value) -> bool:
    """Whether no number in the subgraph of a bias hides a key."""
    if mask.dtype not in FLOATS:
        return False
    values, found = [mask], {mask}
    while values:
        value = values.pop()
        if _holds_large_number(value) or len(found) > _MAX_BIAS_NODES:
            return False
        node = value.producer()
        # A length is no number that hides, whatever tensor it is the length of.
        inputs = () if node is None or node.op_type == "Shape" else [x for x in node.inputs if x is not None]
        values += [x for x in inputs if x not in found]
        found.update(inputs)
    return True


def _holds_large_number(value: ir.Value) -> bool:
    """Whether a constant holds a number that can hide a key once it is added to its score, or negated and added."""
    tensor = ir.convenience.get_const_tensor(value)
    node = value.producer()
    if tensor is None and node is not None and node.op_type == "ConstantOfShape" and "value" in node.attributes:
        tensor = node.attributes["value"].as_tensor()
    if tensor is None or tensor.dtype not in FLOATS or tensor.size == 0:
        return False
    return bool((abs(tensor.numpy()) >= _LARGE).any())


def _meaning(mask: ir.Value, condition: Condition, contract: MaskContract) -> MaskMeaning:
    if condition.is_constant() and condition.negated:
        raise NotUnderstood(f"its mask {_name(mask)} is false everywhere")
    if condition.negated:
        raise NotUnderstood(
            f"its mask {_name(mask)} is a disjunction, not a conjunction of causality, window and padding"
        )
    lengths = _Lengths(contract, _input_lengths(mask))
    for term in condition.terms:
        lengths.learn(term)
    lengths.learn_tables(condition.terms)
    causal = contract.new_length == ONE  # the only new token is the last key
    windows, padding = [], None
    for term in sorted(condition.terms, key=repr):
        if isinstance(term, RealToken):
            lengths.require_padding(term)
            if padding is not None and padding is not term.source:
                raise NotUnderstood(
                    f"its mask takes padding from two inputs, {_name(padding)} and {_name(term.source)}"
                )
            padding = term.source
            continue
        lengths.require(term)
        window = lengths.classify(term)
        if window == 0:
            causal = True
        elif window is not None:
            windows.append(window)
    return MaskMeaning(causal, min(windows, default=None), padding)


class _Lengths:
    """The lengths P and S, and what the mask's own axes tell about other symbols."""

    def __init__(self, contract: MaskContract, inputs: frozenset[str]) -> None:
        self._contract = contract
        self._inputs = inputs
        self._known: dict[str, Affine] = {}
        self._own = {name for name, _ in contract.total_length.terms}
        for total in contract.totals:
            self._solve(total, contract.total_length, frozenset(name for name, _ in total.terms))

    def learn(self, term: AtLeastZero | RealToken) -> None:
        """Solve for foreign symbols: the mask's last axis has length T, the one before it S.

        An axis of length 1 would broadcast, so only lengths of the model's own inputs are solved for, which name T and
        S. Those of P and S themselves are not, or a wrong length would be explained away.
        """
        for axis, length in _axis_lengths(term):
            expected = self._expected(axis)
            if expected is not None:
                self._solve(length, expected)

    def _solve(self, length: Affine, expected: Affine, symbols: frozenset[str] | None = None) -> None:
        """Take a length as the expected one, by a symbol of the model's inputs or one of the given."""
        unknown = (self._inputs if symbols is None else symbols) - self._own
        rest = (length - expected).substitute(self._known)
        pivot = next((n for n, c in rest.terms if abs(c) == 1 and n in unknown), None)
        if pivot is None:
            return
        solution = Affine.symbol(pivot) - rest.scaled(rest.coefficient(pivot))
        if not (-solution).is_never_negative():  # a length is not less than 0
            self._known = {n: v.substitute({pivot: solution}) for n, v in self._known.items()}
            self._known[pivot] = solution

    def learn_tables(self, terms: Iterable[AtLeastZero | RealToken]) -> None:
        """Prove that tables reach the ends of their slices, where that follows.

        A table of several columns has T of them left or the model cannot run, so it has no fewer; then it has no fewer
        rows either, if those are as many or more.
        """
        total = self._contract.total_length
        lengths = [(axis, length) for term in terms for axis, length in _axis_lengths(term)]
        capped = {name for _, length in lengths for name, _ in length.terms if isinstance(name, Capped)}
        columns = [
            name.limit for name in capped if (-1, Affine.symbol(name)) in lengths and self._is_same(name.length, total)
        ]
        for limit in columns:
            if not limit.is_constant():
                self._solve(limit, total)
        least = min((limit.const for limit in columns if limit.is_constant() and limit != ONE), default=None)
        for name in sorted(capped):
            limit = name.limit.substitute(self._known)
            is_large = least is not None and limit.is_constant() and limit.const >= least
            if (is_large and self._is_same(name.length, total)) or (
                limit - name.length.substitute(self._known)
            ).is_never_negative():
                self._known[name] = name.length.substitute(self._known)

    def require_padding(self, token: RealToken) -> None:
        """Refuse padding that is not that of each row's keys."""
        name = _name(token.source)
        if (token.batch_axis, token.key_axis) != (-4, -1):
            raise NotUnderstood(
                f"its padding mask {name} lies on axes {token.batch_axis} and {token.key_axis} of the mask "
                "instead of -4 (batch) and -1 (keys)"
            )
        if token.is_padding:
            raise NotUnderstood(f"its mask shows the keys where {name} is 0 and hides the real tokens")
        total, batch = self._contract.total_length, dimension(token.source, 0)
        if batch.is_constant() and self._contract.batch not in (None, batch):
            raise NotUnderstood(f"its padding mask {name} has {batch} rows, and the batch {self._contract.batch}")
        for keys in (dimension(token.source, 1), *sorted(token.keys, key=str)):
            if not self._is_same(keys, total):
                raise NotUnderstood(f"its mask takes {keys} columns of {name} where {total} are needed")
        for rows in sorted(token.rows, key=str):
            if not self._is_same(rows, batch) and not self._is_same(rows, self._contract.batch or batch):
                raise NotUnderstood(f"its mask takes {rows} rows of {name}, and the batch has {batch}")

    def require(self, term: AtLeastZero) -> None:
        """Refuse a term that runs along other axes than the mask's queries and keys."""
        for axis, length in _axis_lengths(term):
            expected = self._expected(axis)
            if expected is None:
                raise NotUnderstood(f"its mask compares positions along axis {axis}, which is neither queries nor keys")
            if not self._is_same(length, expected):
                wrong = length.substitute(self._known)
                raise NotUnderstood(f"its mask has {wrong} positions along axis {axis} where {expected} are needed")

    def classify(self, term: AtLeastZero) -> int | None:
        """0 for causality, W for a sliding window of W keys, None for a condition that always holds."""
        steps = {axis: step for axis, step, _ in term.steps}
        query, key = steps.get(-2, 0), steps.get(-1, 0)
        if self._contract.new_length == ONE and not query:
            query = -key  # the one new token has index 0, so any step says the same
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

    def _is_same(self, a: Affine, b: Affine) -> bool:
        return (a - b).substitute(self._known) == Affine(0)

    def _expected(self, axis: int) -> Affine | None:
        return {-1: self._contract.total_length, -2: self._contract.new_length}.get(axis)


def _axis_lengths(term: AtLeastZero | RealToken) -> list[tuple[int, Affine]]:
    if isinstance(term, RealToken):
        # A padding mask on the wrong axis is refused by its axis; its length says nothing there.
        return [(-1, dimension(term.source, 1))] if term.key_axis == -1 else []
    return [(axis, length) for axis, _, length in term.steps]


def _input_lengths(mask: ir.Value) -> frozenset[str]:
    """Symbols of the axes that tokens lie on: of [B, S] and [B, T] whole numbers, and of embeddings [B, S, E]."""
    node = mask.producer()
    inputs = () if node is None or node.graph is None else node.graph.inputs
    shapes = [value for value in inputs if value.shape is not None]
    tokens = [value for value in shapes if len(value.shape or ()) == (3 if value.dtype in FLOATS else 2)]
    return frozenset(name for value in tokens for name, _ in dimension(value, 1).terms)


def _inequality(base: Affine, query: int, key: int) -> str:
    return f"{base + Affine(0, (('i', query),)) + Affine(0, (('j', key),))} ≥ 0"


def _name(value: ir.Value) -> str:
    return repr(value.name)
