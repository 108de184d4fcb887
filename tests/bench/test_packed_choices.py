"""The study of packed caches: its attention is the operator's and the definitions', and the page is the record's."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import packed_choices, packed_choices_tables, tables
from bench.held_attention import (
    Coding,
    HeldKeyModel,
    attend,
    elements,
    rows,
    rows_against_mean_key,
    rows_with_mean_key,
)
from bench.packed_choices import Curve, Seen
from bench.packed_choices_tables import AGAINST_MEAN, RELATIVE, TABLES, WEIGHTED, savings
from deltallm_onnx import DeltaConfig, rewrite
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.evaluation import compare, text_windows
from deltallm_onnx.export import export_model
from deltallm_onnx.runtime import DecoderModel, TextTokenizer

WINDOW, SINKS = 5, 2


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> DecoderModel:
    return DecoderModel(export_model(packed_choices.MODEL, tmp_path_factory.mktemp("demo") / "dense.onnx").path)


@pytest.mark.parametrize(("granularity", "theta"), [("element", 0.9), ("row", 0.8)])
def test_the_divergence_is_the_operators(granularity: str, theta: float, exported: DecoderModel) -> None:
    """Float caches: rounding is left out in both. A held key may differ where a change is within 1e-6 of θ."""
    text = (packed_choices.MODEL / "validation.txt").read_text(encoding="utf-8")
    windows = text_windows(TextTokenizer(packed_choices.MODEL).encode(text[:20000]), 173, 2)
    config = DeltaConfig(
        threshold=theta, window=31, sinks=4, granularity=granularity, prefill="delta", cache_format="float32"
    )
    held = rewrite(exported.path, exported.path.with_name(f"{granularity}.onnx"), config)
    _, expected = compare(exported, DecoderModel(held.path), windows)
    model = HeldKeyModel(packed_choices.MODEL, window=31, sinks=4)
    coding = elements([theta] * model.layers, sinks=4) if granularity == "element" else rows(theta, sinks=4)
    found = [
        float((p[:-1].exp() * (p[:-1] - q[:-1])).sum(dim=-1).double().mean())
        for p, q in zip(*(list(model.log_probabilities(windows, c)) for c in (lambda *_: None, coding)), strict=True)
    ]
    assert expected.kl_to_reference > 1e-4
    assert np.mean(found) == pytest.approx(expected.kl_to_reference, rel=1e-2)


def read_by_definition(keys: np.ndarray, theta: float, last: int, name: str) -> np.ndarray:
    """What a query whose last coded token is `last` reads of keys [S, D]: token by token, in float64."""
    read, run = keys.copy(), [SINKS - 1]
    reference = keys[SINKS - 1]
    for t in range(SINKS, last + 1):
        held = np.linalg.norm(keys[t] - reference) <= theta * np.linalg.norm(keys[t])
        if not held or (name == "against mean" and t == SINKS):
            run, reference = [], keys[t]
        elif t == SINKS and name == "mean":
            run = []  # the sink is not in the run of those held against it
        run.append(t)
        if name == "last":
            read[t] = reference
            continue
        mean = keys[run].mean(axis=0)
        read[run] = mean
        if name == "against mean":
            reference = mean
    return read


@pytest.mark.parametrize(
    ("name", "coding"), [("last", rows), ("mean", rows_with_mean_key), ("against mean", rows_against_mean_key)]
)
@pytest.mark.parametrize("theta", [0.3, 0.5])
def test_runs_are_read_as_defined(name: str, coding: Callable[[float, int], Coding], theta: float) -> None:
    """Also while a run is growing; θ = 0.5 holds more than half of the tokens."""
    Hkv, G, S, D = 2, 3, 47, 7
    rng = np.random.default_rng(4)
    key = np.cumsum(rng.normal(0, 0.35, (Hkv, S, D)), axis=1).astype(np.float32)
    query, value = (rng.normal(0, 1, (heads, S, D)).astype(np.float32) for heads in (Hkv * G, Hkv))
    held = coding(theta, SINKS)(0, query[None], key[None])
    assert held is not None
    assert held.starts is not None
    share = 1 - held.starts[0, :, SINKS + 1 :].mean()
    assert 0.1 < share < 0.95
    found = attend(*map(torch.from_numpy, (query, key, value)), held.of_row(0), window=WINDOW, sinks=SINKS)
    for h in range(Hkv * G):
        keys, values = key[h // G].astype(np.float64), value[h // G].astype(np.float64)
        for i in range(S):
            read = read_by_definition(keys, theta, i - WINDOW, name)
            scores = read[: i + 1] @ query[h, i]
            p = np.exp(scores - scores.max())
            np.testing.assert_allclose(found[h, i], p @ values[: i + 1] / p.sum(), atol=2e-5, err_msg=f"{h}, {i}")


def test_zero_widths_are_counted_per_group_and_span() -> None:
    """Of 2 heads, 31 spans of 16 rows, one changes in a channel of the second group of four, one in all channels."""
    seen = Seen()
    keys = np.zeros((1, 2, packed_choices.WINDOW + packed_choices.SINKS + 500, 32), np.float32)
    first = packed_choices.SINKS
    keys[0, 1, first + 16 * 3 + 5 :, 6] = 1
    keys[0, 0, first + 16 * 9 + 1 :, :] = 2
    # The first row of a span may differ from the row before it.
    keys[0, 0, first + 16 * 20 :, 3] = 4
    seen.add(7, packed_choices.HeldKeys(keys))
    order = np.tile(np.arange(32), (2, 1))
    found = seen.zero_width(16, lambda _layer, _constant: order)
    assert list(found) == ["1", "4", "8", "16"]
    for group, shares in found.items():
        groups = 32 // int(group)
        assert shares == pytest.approx([1 - (1 + groups) / (2 * 31 * groups)], rel=1e-4)
    assert seen.delta_sparsity == pytest.approx(1 - (1 + 32 + 1) / (2 * 500 * 32))


class Parabola:
    """A study whose divergence is the square of the threshold, and jumps at 1."""

    measured = 0

    def measure(self, coding: Any) -> Any:
        self.measured += 1
        return {"kl": min(coding**2 + (coding >= 1), 9.0)}, None


def curve(study: Any) -> Curve:
    return Curve(study, lambda x: x, 0.3)


def divergence(measurement: Any) -> float:
    return float(measurement[0]["kl"])


def test_a_threshold_is_found_with_few_measurements() -> None:
    study = Parabola()
    one = curve(study)
    for target in (0.01, 4.0, 0.5):
        _, (result, _) = one.solve(divergence, target, 0.01)
        assert result["kl"] == pytest.approx(target, rel=0.01)
    assert study.measured < 20
    x, _ = one.solve(divergence, 1.5, 0.01)
    assert 0.997 < x < 1, "the last before the jump"


def test_a_divergence_that_no_threshold_gives_is_refused() -> None:
    with pytest.raises(DeltaLLMError, match=r"No threshold gives 50: the nearest, .*, gives 9\."):
        curve(Parabola()).solve(divergence, 50, 0.01)


def test_savings_are_shares_of_keys_and_values() -> None:
    zero = {
        cache: {"stored": {"4": [share, 0.0, share / 2]}, "other": {"4": [share] * 3}}
        for cache, share in (("int8", 0.4), ("int4", 0.2))
    }
    record = {
        "settings": {"head_size": 64},
        "element": [{"limit": 0.1, "zero_width": zero}],
        "row": {
            "at_limits": [
                {"rule": RELATIVE, "target": 0.1, "held": [0.1, 0.5, 0.3]},
                {"rule": WEIGHTED, "target": 0.1, "held": [0.0, 0.1, 0.2]},
                {"rule": AGAINST_MEAN, "target": 0.1, "held": [0.9, 0.9, 0.9]},
            ]
        },
    }
    # int8: 15 of 16 rows of 64 codes of 136 bytes, 16 bits per tile; int4: 32 code bytes of 72, 16 bits per block.
    (saved, skipped), runs = savings(record, 0.1, "int8")
    assert saved == pytest.approx((0.4 * 60 - 0.125) / 136)
    assert skipped == pytest.approx(0.2 * 15 / 16)
    assert runs == (0.3, 0.3)
    (saved, skipped), _ = savings(record, 0.1, "int4")
    assert saved == pytest.approx((0.2 * 32 - 2 / 128) / 72)
    assert skipped == pytest.approx(0.1)


class ThisProcess(Executor):
    """Runs what it is given at once: patches do not reach other processes."""

    def submit(self, function: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments, **named))
        return future


def test_a_record_is_taken_and_the_tables_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On little text, where divergence grows in steps."""
    small = {"TOKENS": 401, "WINDOWS": 2, "LIMITS": (0.002,), "SHARES": (0.4,)}
    for name, value in {**small, "KL_TOLERANCE": 0.25, "SHARE_TOLERANCE": 0.05}.items():
        monkeypatch.setattr(packed_choices, name, value)
    monkeypatch.setattr(packed_choices, "ProcessPoolExecutor", lambda _workers, mp_context: ThisProcess())  # noqa: ARG005  # its name
    monkeypatch.setattr(packed_choices, "rounding_study", lambda _study: {"int8": 1e-5, "int4": 2e-5})
    monkeypatch.setattr(torch, "set_num_threads", lambda _count: None)  # it would stay so for other tests
    monkeypatch.setattr("sys.argv", ["packed_choices", "--record", str(tmp_path)])
    before = packed_choices.PAGE.read_bytes()
    packed_choices.main()
    assert packed_choices.PAGE.read_bytes() == before
    (path,) = tmp_path.iterdir()
    record = json.loads(path.read_text())
    assert len(record["element"]) == len(packed_choices.ELEMENT_RULES)
    for row in [*record["element"], *record["row"]["at_limits"]]:
        assert 0.5 * 0.002 <= row["kl"] <= 0.002
    for row in record["row"]["at_shares"]:
        assert np.mean(row["held"]) == pytest.approx(0.4, rel=0.06)
    assert record["everything_held"]["kl"] > 0.002
    for zero in (row["zero_width"] for row in record["element"]):
        for shares in (order for cache in zero.values() for order in cache.values()):
            # What is constant in a larger group is so in the smaller ones.
            assert np.all(np.diff([np.mean(shares[group]) for group in ("1", "4", "8", "16")]) <= 0)
    monkeypatch.setattr(packed_choices_tables, "load", lambda _name: record)
    for name, table in TABLES.items():
        header, _, *lines = table().strip().split("\n")
        assert lines, name
        assert {line.count("|") for line in lines} == {header.count("|")}, name


def test_a_missing_folder_is_refused_before_measuring(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["packed_choices", "--record", "no/such"])
    with pytest.raises(SystemExit) as left:
        packed_choices.main()
    assert left.value.code == 2
    assert capsys.readouterr().err == ("error: There is no folder no/such: make it first, or give another --record.\n")


def test_the_committed_page_is_what_the_committed_record_gives() -> None:
    text = packed_choices.PAGE.read_text(encoding="utf-8")
    page, problems = tables.filled(text, TABLES)
    assert not problems
    assert page == text, "run 'python -m bench.packed_choices --tables'"
    assert all(f"<!-- table {name} -->" in text for name in TABLES)
