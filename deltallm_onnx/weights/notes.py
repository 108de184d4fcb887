"""What a user should know about stored weights."""

from __future__ import annotations

from deltallm_onnx.weights.report import WeightsReport

_HALVED = (
    "float16 weights halve the file only: ONNX Runtime's CPU computes in float32, and widens all but the embeddings "
    "when it opens the model."
)
_CODED = "Run it with ONNX Runtime 1.23 or later: older ones lack GatherBlockQuantized of this kind."
_UNMEASURED = (
    "What the quantised weights cost in predictions was not measured: 'deltallm-onnx eval' with the float model as "
    "--baseline measures it, together with what held keys cost."
)
_SYMMETRIC_TABLES = "Embeddings, and a head tied to them, are symmetric all the same"
_WRONG_LOOKUPS = ": ONNX Runtime 1.23 to 1.26 look up asymmetric 4-bit rows wrongly."


def weight_notes(report: WeightsReport | None, *, cost_told: bool = False) -> tuple[str, ...]:
    """Sentences for the report of a conversion; none where the weights are as they were.

    Args:
        report: on the weights.
        cost_told: whether another line says what they cost in predictions, or that it was not measured.
    """
    if report is None:
        return ()
    if not report.weight_format.bits:
        return (_HALVED,)
    notes = (_CODED,) if cost_told else (_CODED, _UNMEASURED)
    if report.weight_format.symmetric:
        return notes
    return (*notes, _SYMMETRIC_TABLES + (_WRONG_LOOKUPS if report.weight_format.bits == 4 else "."))
