"""The rules by which keys are held: one name for each, in options, tables and reports."""

from __future__ import annotations

import dataclasses

from deltallm_onnx.config import Granularity, RowRule
from deltallm_onnx.errors import DeltaLLMError


@dataclasses.dataclass(frozen=True)
class Rule:
    """A way to turn a scale α ≥ 0 per KV head into the threshold of docs/spec.md section 2. α = 0 holds nothing new.

    Attributes:
        name: as in RULES.
        granularity: of the layers it makes.
        row_rule: of the layers it makes; not read with granularity "element".
        weighted: whether rows are weighted by the root mean square of their queries.
        per_channel: whether single channels have thresholds of their own.
    """

    name: str
    granularity: Granularity
    row_rule: RowRule = "relative"
    weighted: bool = False
    per_channel: bool = False

    @property
    def calibrated(self) -> bool:
        """Whether it needs statistics of queries or keys, which a calibration takes."""
        return self.weighted or self.per_channel


_RULES = (
    Rule("uniform", "element"),
    Rule("sigma", "element", per_channel=True),
    Rule("query", "element", per_channel=True),
    Rule("relative", "row", "relative"),
    Rule("absolute", "row", "absolute"),
    Rule("query", "row", "absolute", weighted=True),
    Rule("query-relative", "row", "relative", weighted=True),
)

#: Every rule by granularity and name. With σ_c = key_std and r_c = query_rms of a channel:
#: element: θ_c = α ("uniform"), α·σ_c ("sigma"), α / r_c ("query": every channel may add the same error to a score);
#: row: ‖δ‖ ≤ α‖k‖ ("relative"), ‖δ‖ ≤ α ("absolute"), ‖r∘δ‖ ≤ α ("query": the expected error of a score, as far as
#: query channels are independent), ‖r∘δ‖ ≤ α‖r∘k‖ ("query-relative").
RULES: dict[tuple[Granularity, str], Rule] = {(rule.granularity, rule.name): rule for rule in _RULES}


def find_rule(granularity: Granularity, name: str) -> Rule:
    """The rule of this name.

    Raises:
        DeltaLLMError: where the granularity has none of that name, listing those it has.
    """
    rule = RULES.get((granularity, name))
    if rule is None:
        names = ", ".join(known for kind, known in RULES if kind == granularity)
        raise DeltaLLMError(f"Granularity {granularity} has no rule {name!r}: choose one of {names}.")
    return rule


def rule_name(granularity: str, row_rule: str, *, weighted: bool, per_channel: bool) -> str:
    """The name of the rule behind what a model or a plan says of a layer.

    Args:
        granularity: of the layer.
        row_rule: of the layer; not read with granularity "element".
        weighted: whether its rows have channel weights.
        per_channel: whether its thresholds differ by channel.

    Returns:
        A name of RULES; "sigma or query" for thresholds per channel, which do not say what they were made by; and
        `row_rule` itself where no rule makes such a layer.
    """
    if granularity == "element":
        return " or ".join(
            rule.name for rule in _RULES if rule.granularity == "element" and rule.per_channel == per_channel
        )
    made = (
        rule.name for rule in _RULES if (rule.granularity, rule.row_rule, rule.weighted) == ("row", row_rule, weighted)
    )
    return next(made, row_rule)


def form_label(form: str) -> str:
    """Granularity and name of a rule, such as "row query", for a form that a rewritten model's metadata lists.

    Args:
        form: of `LayerPlan.form`, such as "row absolute weighted"; another text is returned as it is.
    """
    match form.split():
        case ["element", *rest] if rest in ([], ["per", "channel"]):
            return f"element {rule_name('element', '', weighted=False, per_channel=bool(rest))}"
        case ["row", row_rule, *rest] if rest in ([], ["weighted"]):
            return f"row {rule_name('row', row_rule, weighted=bool(rest), per_channel=False)}"
    return form
