"""Quality and counters, held against both models read token by token."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from support.report_models import ReportModels, WrittenReport, letters
from support.tiny_decoder import HEAD_SIZE, KV_HEADS, LAYERS

from deltallm_onnx import DeltaConfig, rewrite
from deltallm_onnx.evaluation import Predictions
from deltallm_onnx.evaluation.quality import by_position
from deltallm_onnx.report import ReportRequest, gather
from deltallm_onnx.report.quality import quality_section
from deltallm_onnx.report.reading import Reading
from deltallm_onnx.report.sample_text import read_sample
from deltallm_onnx.runtime import DecoderModel

#: Columns of the statistics output, docs/spec.md section 6.
TOTAL, ZERO, QK_DENSE, QK_SKIPPED, PV_DENSE, PV_SKIPPED, BYTES, READ = range(8)


def token_by_token(model: DecoderModel, window: np.ndarray) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Log-probabilities [S − 1, V] in float64, statistics summed over the steps by layer, and those of the last."""
    cache, rows, total, last = model.new_cache(), [], [], []
    for token in window:
        logits, last = model.step(np.array([[token]]), cache)
        rows.append(logits[0, 0].astype(np.float64))
        total = [a + b for a, b in zip(total, last, strict=True)] if total else list(last)
    logs = np.stack([row - row.max() - math.log(np.exp(row - row.max()).sum()) for row in rows[:-1]])
    return logs, total, last


def test_every_score_is_that_of_decoding(report: WrittenReport) -> None:
    windows = read_sample(report.request, 9).windows
    dense, delta = DecoderModel(report.request.baseline), DecoderModel(report.request.model)
    losses, kls, agree = ([], []), [], []
    counts = [np.zeros((KV_HEADS, 8), np.int64) for _ in range(LAYERS)]
    ends = [np.zeros((KV_HEADS, 8), np.int64) for _ in range(LAYERS)]
    for window in windows:
        log_p, _, _ = token_by_token(dense, window)
        log_q, total, last = token_by_token(delta, window)
        at = np.arange(len(window) - 1), window[1:]
        losses[0].append(-log_p[at])
        losses[1].append(-log_q[at])
        kls.append((np.exp(log_p) * (log_p - log_q)).sum(axis=1))
        agree.append(log_p.argmax(axis=1) == log_q.argmax(axis=1))
        counts = [a + b for a, b in zip(counts, total, strict=True)]
        ends = [a + b for a, b in zip(ends, last, strict=True)]
    quality = report.data["quality"]
    baseline, model = (np.array(part) for part in losses)
    kl = np.array(kls)
    # One call and many sum in other orders: logits of order ten differ by 2e-5.
    near = {"rel": 2e-4, "abs": 1e-6}
    assert quality["predictions"] == kl.size == 3 * 89
    assert quality["perplexity"] == pytest.approx(math.exp(model.mean()), **near)
    assert quality["baseline_perplexity"] == pytest.approx(math.exp(baseline.mean()), **near)
    assert quality["perplexity_increase"] == pytest.approx(math.expm1((model - baseline).mean()), abs=2e-4)
    assert quality["kl"] == pytest.approx(kl.mean(), **near)
    assert quality["kl"] > 1e-3
    assert quality["top1_agreement"] == pytest.approx(np.mean(agree), abs=1.5 / kl.size)
    low, high = quality["kl_interval"]
    assert kl.mean(axis=1).min() - 3 * np.ptp(kl.mean(axis=1)) <= low < quality["kl"] < high
    buckets = quality["by_position"]
    assert [(bucket["from"], bucket["to"]) for bucket in buckets] == [(1, 89)]
    for bucket in buckets:
        positions = slice(bucket["from"] - 1, bucket["to"])
        assert bucket["kl"] == pytest.approx(kl[:, positions].mean(), **near)
        assert bucket["perplexity"] == pytest.approx(math.exp(model[:, positions].mean()), **near)
    _check_counters(report, np.array(counts), np.array(ends))


def test_positions_are_those_of_an_evaluation() -> None:
    """Position p is that of the predicted token, so that p tokens come before it."""
    losses = np.random.default_rng(6).uniform(1, 3, (2, 170))
    predictions = [
        Predictions(loss=loss, hit=loss > 2, baseline_loss=loss, baseline_hit=loss > 2, kl=loss / 9, agree=loss > 2)
        for loss in losses
    ]
    found = quality_section(predictions, Reading(seconds=1.0), Reading(seconds=2.0), 171)["by_position"]
    assert [(bucket["from"], bucket["to"]) for bucket in found] == [(1, 63), (64, 127), (128, 170)]
    for bucket, other in zip(found, by_position(predictions, 1, 0), strict=True):
        assert (bucket["from"], bucket["to"] + 1) == (other.begin, other.end)
        assert bucket["perplexity"] == pytest.approx(other.quality.perplexity)
        assert bucket["kl"] == pytest.approx(losses[:, bucket["from"] - 1 : bucket["to"]].mean() / 9)


def test_a_divergence_is_not_negative() -> None:
    """Student's interval of three such windows goes below 0."""
    ones = np.ones((3, 5))
    predictions = [
        Predictions(loss=loss, hit=loss > 0, baseline_loss=loss, baseline_hit=loss > 0, kl=kl * loss, agree=loss > 0)
        for loss, kl in zip(ones, (0.001, 0.002, 0.9), strict=True)
    ]
    quality = quality_section(predictions, Reading(seconds=1.0), Reading(seconds=2.0), 6)
    for scores in (quality, *quality["by_position"]):
        assert scores["kl_interval"][0] == 0
        assert scores["kl_interval"][1] > 0.9
        assert scores["perplexity_increase_interval"] == [0, 0]


def test_one_window_has_no_interval() -> None:
    loss = np.linspace(1, 2, 5)
    one = Predictions(loss=loss, hit=loss > 0, baseline_loss=loss, baseline_hit=loss > 0, kl=loss, agree=loss > 0)
    quality = quality_section([one], Reading(seconds=1.0), Reading(seconds=2.0), 6)
    assert quality["kl_interval"] is None
    assert quality["perplexity_increase_interval"] is None


def _check_counters(report: WrittenReport, counts: np.ndarray, ends: np.ndarray) -> None:
    """Counts int64 [L, Hkv, 8] over all steps, and those of every window's last step summed up."""
    sparsity = report.data["sparsity"]
    by_head, total = sparsity["by_head"], sparsity["total"]
    skipped = counts[..., QK_SKIPPED] + counts[..., PV_SKIPPED]
    expected = {
        "delta_sparsity": counts[..., ZERO] / counts[..., TOTAL],
        "qk_mac_sparsity": counts[..., QK_SKIPPED] / counts[..., QK_DENSE],
        "attn_mac_sparsity": skipped / (counts[..., QK_DENSE] + counts[..., PV_DENSE]),
        "kv_bytes_per_token": ends[..., BYTES] / (3 * 90),
        "kv_bytes_read": ends[..., READ] / 3,
    }
    for name, values in expected.items():
        np.testing.assert_allclose(by_head[name], values, rtol=1e-12, err_msg=name)
    sums = counts.sum(axis=(0, 1))
    assert total["delta_sparsity"] == pytest.approx(sums[ZERO] / sums[TOTAL])
    assert total["qk_mac_sparsity"] == pytest.approx(sums[QK_SKIPPED] / sums[QK_DENSE])
    assert total["kv_bytes_per_token"] == pytest.approx(ends[..., BYTES].sum() / (3 * 90 * LAYERS))
    assert total["kv_bytes_read"] == pytest.approx(ends[..., READ].sum() / 3)
    assert 0.2 < total["delta_sparsity"] < 0.95


def test_caches_are_as_large_as_after_decoding(report: WrittenReport) -> None:
    window = read_sample(report.request, 9).windows[0]
    model = DecoderModel(report.request.model)
    cache, in_use = model.new_cache(limit=90), {}
    for token in window:
        model.step(np.array([[token]]), cache)
        in_use[cache.length] = cache.bytes_in_use
    section = report.data["cache"]
    assert [point["tokens"] for point in section["points"]] == [16, 32, 64, 90]
    float32 = LAYERS * 2 * KV_HEADS * HEAD_SIZE * 4
    assert section["plain_bytes_per_token"] == {
        "float32": float32,
        "float16": float32 // 2,
        "int8": LAYERS * 2 * KV_HEADS * (HEAD_SIZE + 4),
    }
    for point in section["points"]:
        assert point["in_use"] == in_use[point["tokens"]] < point["allocated"]
        assert point["kv_bytes_per_token"] == point["in_use"] / (point["tokens"] * LAYERS)
        assert point["times_below_float32"] == pytest.approx(float32 * point["tokens"] / point["in_use"])


def test_without_a_baseline_the_model_stands_alone(models: ReportModels) -> None:
    data = gather(ReportRequest(models.element, text=models.text, window_tokens=50, windows=1, maps=0))
    quality = data["quality"]
    assert not any("baseline" in key or key in ("kl", "top1_agreement") for key in quality)
    assert quality["perplexity"] > 1
    assert data["attention"] is None
    assert data["left_out"]["attention"].startswith("It was not asked for")
    assert data["cache"]["points"][-1]["times_below_float32"] == 1


@pytest.mark.parametrize("statistics", [True, False])
def test_unfused_models_have_no_maps(models: ReportModels, statistics: bool) -> None:
    path = models.folder / "unfused.onnx"
    config = DeltaConfig(window=5, sinks=4, granularity="element", cache_format="float32", prefill="delta")
    rewrite(models.dense, path, config, unfused=True, statistics=statistics)
    data = gather(ReportRequest(path, baseline=models.dense, text=models.text, window_tokens=40, windows=1))
    assert data["quality"]["kl"] > 0
    for part in ("attention", "runs", *(() if statistics else ("sparsity",))):
        assert data[part] is None
        assert "--unfused" in data["left_out"][part]
    assert (data["sparsity"] is not None) == statistics


def test_windows_fit_text_and_context(models: ReportModels, tmp_path: Path) -> None:
    """Without a wish: as long as the context allows, as many as the text has."""
    folder = tmp_path / "short"
    folder.mkdir()
    for path in models.folder.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 100}))
    text = tmp_path / "text.txt"
    for count, windows in ((60, (1, 60)), (250, (2, 100)), (1000, (4, 100))):
        text.write_text(letters(count))
        sample = read_sample(ReportRequest(folder / "int8.onnx", text=text), 9)
        assert sample.windows.shape == windows
        assert len(sample.sample) == min(count, 100)
        assert "".join(sample.sample_tokens) == letters(count)[:100]


def test_the_data_survive_json(report: WrittenReport) -> None:
    assert json.loads(json.dumps(report.data, allow_nan=False)) == report.data
