"""The tables that `deltallm-onnx eval` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from deltallm_onnx.evaluation.result import Evaluation

_NOTHING = "–"


def figures_table(evaluation: Evaluation) -> Table:
    """What was measured in all, the model beside the baseline."""
    quality, cache, other = evaluation.quality, evaluation.cache, evaluation.baseline_cache
    change = _percent(quality.perplexity_ratio), _percent_interval(quality.perplexity_ratio_interval)
    speeds = [None if s is None else s.tokens_per_second.median for s in (evaluation.speed, evaluation.baseline_speed)]
    rows = [
        (
            "perplexity",
            *_with_interval(quality.perplexity, quality.perplexity_interval),
            *_with_interval(quality.baseline_perplexity, quality.baseline_perplexity_interval),
        ),
        ("change of perplexity (%)", *_with_interval(*change, sign="+")),
        ("KL to the baseline (nats/token)", *_with_interval(quality.kl, quality.kl_interval)),
        ("top-1 agreement with the baseline", *_with_interval(quality.top1_agreement, quality.top1_agreement_interval)),
        ("top-1 accuracy", _text(quality.top1_accuracy), "", _text(quality.baseline_top1_accuracy)),
        *((name, _text(getattr(cache, name))) for name in ("delta_sparsity", "qk_mac_sparsity", "attn_mac_sparsity")),
        *(
            (label, _bytes(getattr(cache, name)), "", _bytes(None if other is None else getattr(other, name)))
            for name, label in (
                ("kv_bytes_per_token", "kv_bytes_per_token (B, one layer)"),
                ("kv_bytes_allocated_per_token", "  allocated"),
                ("kv_bytes_read", f"kv_bytes_read (B, all layers, to decode token {evaluation.window_tokens})"),
            )
        ),
        ("decode tokens/s", _text(speeds[0]), "", _text(speeds[1])),
        ("wall time of the windows (s)", _text(evaluation.seconds), "", _text(evaluation.baseline_seconds)),
    ]
    return _table(("", "model", "95 %", "baseline", "95 %"), rows)


def positions_table(evaluation: Evaluation) -> Table:
    """The same by position in the window."""
    rows = [
        (
            f"{bucket.begin}–{bucket.end - 1}",
            _text(bucket.quality.perplexity),
            _text(bucket.quality.baseline_perplexity),
            *_with_interval(
                _percent(bucket.quality.perplexity_ratio),
                _percent_interval(bucket.quality.perplexity_ratio_interval),
                sign="+",
            ),
            *_with_interval(bucket.quality.kl, bucket.quality.kl_interval),
            _text(bucket.quality.top1_agreement),
        )
        for bucket in evaluation.positions
    ]
    return _table(("position", "perplexity", "baseline", "change (%)", "95 %", "KL", "95 %", "top-1 agr."), rows)


def retrieval_table(evaluation: Evaluation) -> Table:
    """What was retrieved at which depth. Log-probabilities are per token, so that tasks can be compared."""
    rows = [
        (
            score.task,
            "never said" if score.depth is None else _text(score.depth),
            *(_text(None if found is None else found.log_prob / score.tokens) for found in both),
            _text(score.chance_log_prob / score.tokens),
            *(_text(None if found is None else found.token_accuracy) for found in both),
            _text(score.chance_token_accuracy),
            *(_text(None if found is None else found.hit_rate) for found in both),
        )
        for score in evaluation.retrieval
        for both in [(score.model, score.baseline)]
    ]
    columns = ("log-prob/token", "baseline", "chance", "top-1", "baseline", "chance", "all right", "baseline")
    return _table(("retrieval", "depth", *columns), rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table without the columns that hold nothing."""
    filled = [[*row, *[""] * (len(columns) - len(row))] for row in rows]
    shown = [i for i, _ in enumerate(columns) if any(row[i] not in ("", _NOTHING) for row in filled)]
    table = Table()
    for i in shown:
        table.add_column(columns[i], justify="right" if i else "left")
    for row in filled:
        table.add_row(*(row[i] for i in shown))
    return table


def _text(value: float | None, sign: str = "") -> str:
    return _NOTHING if value is None else f"{value:{sign},.4g}"


def _bytes(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:,.1f}".removesuffix(".0")


def _percent(ratio: float | None) -> float | None:
    return None if ratio is None else 100 * (ratio - 1)


def _percent_interval(ends: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if ends is None else (100 * (ends[0] - 1), 100 * (ends[1] - 1))


def _with_interval(value: float | None, ends: tuple[float, float] | None, sign: str = "") -> tuple[str, str]:
    return _text(value, sign), "" if ends is None else f"{_text(ends[0], sign)} … {_text(ends[1], sign)}"
