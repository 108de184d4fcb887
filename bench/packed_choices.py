"""Two choices of the packed caches, in numbers: groups of channels of zero width, and the key of a run.

    python -m bench.packed_choices             # measure (5 minutes), write the record, fill in the page's tables
    python -m bench.packed_choices --tables    # the tables alone

Measured on the bundled model and its held-out text, in windows read by one call each. What is measured is divergence
and shares of what need not be stored, not time. The text, the windows and all settings are fixed, so that the same
machine gives the same record.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bench.held_attention import (
    Coding,
    HeldKeyModel,
    HeldKeys,
    dense,
    elements,
    rows,
    rows_against_mean_key,
    rows_with_mean_key,
    weighted_rows,
)
from bench.packed_choices_tables import AGAINST_MEAN, MEAN_KEY, RECORD, RELATIVE, SPANS, TABLES, WEIGHTED
from bench.script import check_record_folder, refusals, script_parser
from bench.tables import RECORDS, fill_page
from deltallm_onnx import DeltaConfig, rewrite
from deltallm_onnx.bench import write_record
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.evaluation import compare, text_windows
from deltallm_onnx.export import export_model
from deltallm_onnx.packed_sizes import BLOCK_ROWS
from deltallm_onnx.runtime import DecoderModel, TextTokenizer
from deltallm_onnx.runtime.environment import environment

Array = npt.NDArray[Any]

_ROOT = Path(__file__).resolve().parents[1]
MODEL = _ROOT / "models" / "demo"
PAGE = _ROOT / "docs" / "packed-cache-choices.md"

WINDOW, SINKS = 128, 4
WINDOWS, CALIBRATION_WINDOWS, TOKENS = 4, 3, 1024
#: Mean KL divergence from the dense model, in nats per token, that a threshold may cost.
LIMITS = (0.005, 0.01, 0.02, 0.05)
#: Shares of coded tokens that are held.
SHARES = (0.25, 0.5, 0.75)
#: How near a threshold comes to a limit, below it, and to a share; nearer thresholds than NARROW are not told apart.
KL_TOLERANCE, SHARE_TOLERANCE, NARROW = 0.03, 0.005, 0.003
#: Channels that share a width.
GROUPS = (1, 4, 8, 16)
#: Where single channels are held: what θ is made of, and an α to begin with.
ONE_THETA, BY_DEVIATION, BY_QUERY = "one θ", "α·σ(k)", "α/rms(q)"
ELEMENT_RULES = {ONE_THETA: 1.0, BY_DEVIATION: 0.5, BY_QUERY: 0.5}
#: Where whole rows are: the rule, and a θ to begin with.
ROW_RULES = {RELATIVE: 0.8, WEIGHTED: 4.0, MEAN_KEY: 0.8, AGAINST_MEAN: 0.8}


@dataclasses.dataclass(frozen=True)
class Text:
    """Windows of token ids [N, S], and the dense model's log-probabilities of each."""

    windows: Array
    reference: list[torch.Tensor]


@dataclasses.dataclass
class KeyStatistics:
    """Of a layer on calibration text, [Hkv, D]: queries' root mean square, keys' deviation, and that within blocks."""

    query: Array
    deviation: Array
    within_blocks: Array


class Seen:
    """What a coding left, by layer."""

    def __init__(self) -> None:
        self._elements: dict[int, list[Array]] = {}
        self._rows: dict[int, list[Array]] = {}
        #: By rows of a span: which channels stay as they are, bool [Hkv, spans, D] per window.
        self._constant: dict[int, dict[int, list[Array]]] = {span: {} for span in SPANS.values()}

    def add(self, layer: int, held: HeldKeys) -> None:
        """Count one layer of some windows."""
        coded = slice(SINKS, held.keys.shape[2] - WINDOW)
        same = held.keys[:, :, 1:] == held.keys[:, :, :-1]
        same = same[:, :, coded.start - 1 : coded.stop - 1]
        self._elements.setdefault(layer, []).append(same.mean())
        if held.starts is not None:
            self._rows.setdefault(layer, []).append((~held.starts[:, :, coded]).mean())
            return
        for span, found in self._constant.items():
            spans = (same.shape[2] - 1) // span
            # The first row of a span is stored; the others of the span may repeat it.
            inside = same[:, :, : spans * span].reshape(*same.shape[:2], spans, span, -1)[:, :, :, 1:]
            found.setdefault(layer, []).extend(inside.all(axis=3))

    @property
    def delta_sparsity(self) -> float:
        """Elements that repeat the one before."""
        return float(np.mean(list(self._elements.values())))

    @property
    def held(self) -> list[float]:
        """Tokens that join the run before them, by layer."""
        return [float(np.mean(found)) for _, found in sorted(self._rows.items())]

    def zero_width(self, span: int, order: Callable[[int, Array], Array]) -> dict[str, list[float]]:
        """Share of (group of channels, span) in which nothing changes, by channels per group and layer.

        Args:
            span: rows.
            order: layer and bool [Hkv, spans, D] to the order of channels [Hkv, D].
        """
        shares: dict[str, list[float]] = {str(group): [] for group in GROUPS}
        for layer, found in sorted(self._constant[span].items()):
            constant = np.concatenate(found, axis=1)
            ordered = np.take_along_axis(constant, order(layer, constant)[:, None], axis=2)
            for group in GROUPS:
                whole = ordered.reshape(*ordered.shape[:2], -1, group).all(axis=3)
                shares[str(group)].append(rounded(whole.mean()))
        return shares


#: What a record keeps of a measurement, and what was held.
Measurement = tuple[dict[str, Any], Seen]
#: What was asked for, the threshold that gives it, and its measurement.
Found = tuple[float, float, Measurement]


class Study:
    """The model, its text, and what codings cost."""

    def __init__(self, windows: int, tokens: int) -> None:
        tokenizer = TextTokenizer(MODEL)
        self.model = HeldKeyModel(MODEL, WINDOW, SINKS)
        self.text = self._read(tokenizer, "validation.txt", windows, tokens)
        self.statistics: dict[int, KeyStatistics] = {}
        self._read(tokenizer, "calibration.txt", CALIBRATION_WINDOWS, tokens, self._note)

    def _read(self, tokenizer: TextTokenizer, name: str, count: int, tokens: int, coding: Coding = dense) -> Text:
        ids = tokenizer.encode((MODEL / name).read_text(encoding="utf-8"))
        windows = text_windows(ids[1:], tokens, count, begin=ids[:1])
        return Text(windows, list(self.model.log_probabilities(windows, coding)))

    def _note(self, layer: int, query: Array, key: Array) -> None:
        """Statistics of a layer; the calibration text comes in one call."""
        B, Hkv, S, D = key.shape
        grouped = query.reshape(B, Hkv, -1, D)
        blocks = key[:, :, : S // BLOCK_ROWS * BLOCK_ROWS].reshape(B, Hkv, -1, BLOCK_ROWS, D)
        self.statistics[layer] = KeyStatistics(
            query=np.sqrt((grouped**2).mean(axis=(0, 2))),
            deviation=key.std(axis=(0, 2)),
            within_blocks=np.sqrt(blocks.var(axis=3).mean(axis=(0, 2))),
        )

    def measure(self, coding: Coding) -> Measurement:
        """KL divergence from the dense model per window and its mean, perplexity, and what was held."""
        seen = Seen()

        def watched(layer: int, query: Array, key: Array) -> HeldKeys | None:
            held = coding(layer, query, key)
            if held is not None:
                seen.add(layer, held)
            return held

        divergences, losses = [], []
        found = self.model.log_probabilities(self.text.windows, watched)
        for window, expected, have in zip(self.text.windows, self.text.reference, found, strict=True):
            p, q = expected[:-1], have[:-1]
            divergences.append(float((p.exp() * (p - q)).sum(dim=-1).double().mean()))
            losses.append(float(-q.gather(1, torch.from_numpy(window[1:])[:, None]).double().mean()))
        result = {
            "kl": rounded(np.mean(divergences)),
            "kl_of_windows": [rounded(x) for x in divergences],
            "perplexity": rounded(math.exp(np.mean(losses)), 6),
        }
        return result, seen

    def hold_elements(self, rule: str, alpha: float) -> Coding:
        """Single channels are held, with the thresholds of an element rule."""
        layers = [self.statistics[layer] for layer in range(self.model.layers)]
        thresholds: list[Array | float] = [alpha] * len(layers)
        if rule == BY_DEVIATION:
            thresholds = [(alpha * layer.deviation).astype(np.float32) for layer in layers]
        elif rule == BY_QUERY:
            thresholds = [(alpha / layer.query).astype(np.float32) for layer in layers]
        return elements(thresholds, SINKS)

    def hold_rows(self, rule: str, theta: float) -> Coding:
        """Whole rows are held, by a row rule."""
        if rule == WEIGHTED:
            return weighted_rows(theta, [self.statistics[layer].query for layer in range(self.model.layers)], SINKS)
        kinds = {RELATIVE: rows, MEAN_KEY: rows_with_mean_key, AGAINST_MEAN: rows_against_mean_key}
        return kinds[rule](theta, SINKS)


def rounded(x: Any, digits: int = 4) -> float:
    """To significant digits: the last ones depend on the order of sums."""
    return float(f"{float(x):.{digits}g}")


class Curve:
    """What thresholds lead to, each measured once.

    Args:
        study: what measures.
        coding_of: a threshold's coding.
        start: a threshold to begin with.
    """

    def __init__(self, study: Study, coding_of: Callable[[float], Coding], start: float) -> None:
        self._study, self._coding_of = study, coding_of
        self._points = {start: study.measure(coding_of(start))}

    def within_limits(self) -> Iterator[Found]:
        """Of every limit of the divergence, the threshold that stays a little below it."""
        for limit in LIMITS:
            target = (1 - KL_TOLERANCE) * limit
            yield limit, *self.solve(lambda measurement: float(measurement[0]["kl"]), target, KL_TOLERANCE)

    def at_shares(self) -> Iterator[Found]:
        """Of every share of tokens held, the threshold that gives it."""
        for share in SHARES:
            yield share, *self.solve(lambda measurement: float(np.mean(measurement[1].held)), share, SHARE_TOLERANCE)

    def solve(
        self, value: Callable[[Measurement], float], target: float, tolerance: float
    ) -> tuple[float, Measurement]:
        """The threshold at which a value comes near the target, and its measurement; where it jumps, the one before.

        Args:
            value: of a measurement; it grows with the threshold.
            target: of the value.
            tolerance: a share of it that is near.

        Raises:
            DeltaLLMError: where none is found.
        """
        for step in range(24):
            at = {x: value(measurement) for x, measurement in self._points.items()}
            nearest = min(at, key=lambda x: abs(at[x] - target))
            below = max((x for x, y in at.items() if y < target), default=None)
            above = min((x for x, y in at.items() if y >= target), default=None)
            if abs(at[nearest] - target) <= tolerance * target:
                return nearest, self._points[nearest]
            if below is None or above is None:
                x = min(at) / 2 if below is None else max(at) * 2
            elif abs(math.log(above / below)) < NARROW:
                # A value that jumps: what is held changes what later tokens are held against.
                return below, self._points[below]
            else:
                low, high = at[below], at[above]
                part = math.log(target / low) / math.log(high / low) if low > 0 and high > target else 0.5
                # Now and then the middle, lest one end stays where it is.
                x = below * (above / below) ** (0.5 if step % 3 == 2 else min(max(part, 0.03), 0.97))
            self._points[x] = self._study.measure(self._coding_of(x))
        raise DeltaLLMError(f"No threshold gives {target}: the nearest, {nearest:.4g}, gives {at[nearest]:.4g}.")


def element_study(study: Study, rule: str) -> list[dict[str, Any]]:
    """How often groups of channels stay as they are within every limit."""
    found = []
    curve = Curve(study, functools.partial(study.hold_elements, rule), ELEMENT_RULES[rule])
    for limit, alpha, (result, seen) in curve.within_limits():
        zero = {
            cache: {name: seen.zero_width(span, order) for name, order in orders(study).items()}
            for cache, span in SPANS.items()
        }
        sparsity = {"delta_sparsity": rounded(seen.delta_sparsity), "zero_width": zero}
        found.append({"rule": rule, "limit": limit, "alpha": rounded(alpha), **result, **sparsity})
    return found


def orders(study: Study) -> dict[str, Callable[[int, Array], Array]]:
    """Orders of channels that groups are taken in."""

    def stored(_layer: int, constant: Array) -> Array:
        return np.tile(np.arange(constant.shape[2]), (len(constant), 1))

    def rotary(_layer: int, constant: Array) -> Array:
        # The channels c and c + D/2 turn together.
        pairs = np.arange(constant.shape[2]).reshape(2, -1).T.reshape(-1)
        return np.tile(pairs, (len(constant), 1))

    def by_variance(layer: int, _constant: Array) -> Array:
        return np.argsort(study.statistics[layer].within_blocks, axis=1, kind="stable")

    def in_hindsight(_layer: int, constant: Array) -> Array:
        return np.argsort(-constant.mean(axis=1), axis=1, kind="stable")

    return {"stored": stored, "rotary": rotary, "variance": by_variance, "hindsight": in_hindsight}


def row_study(study: Study, rule: str) -> dict[str, list[dict[str, Any]]]:
    """Rows held within every limit, and the divergence at every share of rows held."""
    found: dict[str, list[dict[str, Any]]] = {}
    curve = Curve(study, functools.partial(study.hold_rows, rule), ROW_RULES[rule])
    for name, entries in (("at_shares", curve.at_shares()), ("at_limits", curve.within_limits())):
        found[name] = [
            {"rule": rule, "target": target, "theta": rounded(theta), **result, "held": [rounded(x) for x in seen.held]}
            for target, theta, (result, seen) in entries
        ]
    return found


def rounding_study(study: Study) -> dict[str, float]:
    """Divergence of the operator's packed caches at θ = 0, where nothing but rounding is left."""
    base = DeltaConfig(threshold=0.0, window=WINDOW, sinks=SINKS, prefill="delta")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        reference = DecoderModel(export_model(MODEL, Path(folder) / "dense.onnx").path)
        for cache in SPANS:
            out = rewrite(reference.path, Path(folder) / f"{cache}.onnx", base.replace(cache_format=cache))
            _, score = compare(reference, DecoderModel(out.path), study.text.windows)
            found[cache] = rounded(score.kl_to_reference)
    return found


@functools.cache
def study_of(windows: int, tokens: int) -> Study:
    """The study of this process."""
    # One thread: the sums are in the same order every time.
    torch.set_num_threads(1)
    return Study(windows, tokens)


def study_rule(windows: int, tokens: int, rule: str) -> Any:
    """One rule's part of the record, in any process."""
    study = study_of(windows, tokens)
    return element_study(study, rule) if rule in ELEMENT_RULES else row_study(study, rule)


def take(windows: int, tokens: int, workers: int) -> dict[str, Any]:
    """The record."""
    rules = [*ROW_RULES, *ELEMENT_RULES]
    # Forked processes cannot use torch's threads, were there any before.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        parts = {rule: pool.submit(study_rule, windows, tokens, rule) for rule in rules}
        study = study_of(windows, tokens)
        everything_held, _ = study.measure(elements([1e30] * study.model.layers, SINKS))
        perplexity, rounding = study.measure(dense)[0]["perplexity"], rounding_study(study)
        found = {rule: part.result() for rule, part in parts.items()}
    digest = hashlib.sha256((MODEL / "model.safetensors").read_bytes()).hexdigest()
    settings = {"windows": windows, "tokens": tokens, "window": WINDOW, "sinks": SINKS}
    of_model = {"head_size": study.model.model.config.head_dim, "model": "models/demo", "model_sha256": digest}
    return {
        "environment": environment(),
        "settings": {**settings, **of_model, "text": "validation.txt"},
        "dense_perplexity": perplexity,
        "everything_held": everything_held,
        "rounding": rounding,
        "row": {name: [row for rule in ROW_RULES for row in found[rule][name]] for name in ("at_limits", "at_shares")},
        "element": [row for rule in ELEMENT_RULES for row in found[rule]],
    }


def main() -> None:
    parser = script_parser("bench.packed_choices", __doc__)
    parser.add_argument("--tables", action="store_true", help="fill in the page from the record, measure nothing")
    parser.add_argument("--windows", type=int, default=WINDOWS, help="of the text [default: %(default)s]")
    parser.add_argument("--workers", type=int, default=2, help="processes [default: %(default)s]")
    parser.add_argument("--record", type=Path, default=RECORDS, help="folder for the record [default: bench/records]")
    options = parser.parse_args()
    with refusals():
        if not options.tables:
            check_record_folder(options.record)
            write_record(options.record / f"{RECORD}.json", take(options.windows, TOKENS, options.workers))
        if options.record == RECORDS:
            fill_page(PAGE, TABLES)


if __name__ == "__main__":
    main()
