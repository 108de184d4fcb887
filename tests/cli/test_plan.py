"""`--plan FILE`: a calibration's result becomes a model, and a damaged one a sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support.command_line import Outcome, files_below
from support.random_plans import random_plan
from support.tiny_decoder import HEAD_SIZE, KV_HEADS, LAYERS, QUERY_HEADS, VOCABULARY

from deltallm_onnx import AttentionPlan, DeltaConfig
from deltallm_onnx.attention_plan import LayerGeometry
from deltallm_onnx.calibration.plan_file import LARGEST_BYTES
from deltallm_onnx.calibration.probe import Probe
from deltallm_onnx.runtime import DecoderModel

GEOMETRY = tuple(LayerGeometry(layer, QUERY_HEADS, KV_HEADS, HEAD_SIZE) for layer in range(LAYERS))
CONFIG = DeltaConfig(window=9, sinks=3, refresh=50, cache_format="int8")

Run = Callable[..., Outcome]


def calibration(plan: AttentionPlan, **changes: Any) -> dict[str, Any]:
    return {
        "format": "deltallm-calibration",
        "version": 1,
        "config": CONFIG.to_dict(),
        **plan.to_dict(),
        "budget": {"kl": 0.02},
        **changes,
    }


def written(path: Path, data: Any) -> Path:
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


@pytest.fixture
def plan() -> AttentionPlan:
    return random_plan(GEOMETRY, granularity=("element", "row"), weighted=True, v_skip=(0.0, 0.02), seed=11)


def settings(path: Path) -> dict[str, Any]:
    properties = {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
    said: dict[str, Any] = json.loads(properties["deltallm.config"])
    return said


def test_the_model_is_the_plans(deltallm: Run, dense: Path, tmp_path: Path, plan: AttentionPlan) -> None:
    """Thresholds bit by bit, and the logits that the probe saw for this plan."""
    file = written(tmp_path / "deltallm.json", calibration(plan))
    out = tmp_path / "delta.onnx"
    outcome = deltallm("rewrite", dense, out, "--plan", file, "--prefill", "delta")
    assert outcome.code == 0, outcome
    assert (
        f"thresholds of the plan {plan.sha256[:12]}: element sigma or query in 1 layer, row query-relative"
        in outcome.out
    )
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(out).graph.initializer}
    for entry in plan.layers:
        np.testing.assert_array_equal(tensors[f"deltallm.threshold.{entry.layer}"], entry.threshold)
    np.testing.assert_array_equal(tensors["deltallm.row_weight.1"], plan[1].row_weight)
    ids = np.random.default_rng(1).integers(0, VOCABULARY, (1, 41))
    kinds = {"granularity": ("element", "row"), "weighted": True, "v_skip": (0.0, 0.02)}
    with Probe(dense, CONFIG, threads=1, **kinds) as probe:
        expected, _ = probe.run(ids, plan)
    model = DecoderModel(out, threads=1)
    logits, _ = model.step(ids, model.new_cache())
    np.testing.assert_array_equal(logits, expected)


def test_options_go_before_the_plans_settings(deltallm: Run, dense: Path, tmp_path: Path, plan: AttentionPlan) -> None:
    file = written(tmp_path / "deltallm.json", calibration(plan))
    for given, expected in ((), CONFIG), (("--window", "13", "--refresh", "0"), CONFIG.replace(window=13, refresh=0)):
        out = tmp_path / "delta.onnx"
        assert deltallm("rewrite", dense, out, "--plan", file, *given).code == 0
        said = settings(out)
        assert {**expected.to_dict(), **said} == expected.to_dict()
        assert "threshold" not in said


def test_inspect_shows_the_plan(deltallm: Run, dense: Path, tmp_path: Path, plan: AttentionPlan) -> None:
    """Also where numbers per channel lie in the data file."""
    wide = random_plan(GEOMETRY, granularity="element", seed=4)
    file = written(tmp_path / "wide.json", calibration(wide))
    out, outside = tmp_path / "delta.onnx", tmp_path / "outside.onnx"
    assert deltallm("rewrite", dense, out, "--plan", file).code == 0
    onnx.save(onnx.load(out), outside, save_as_external_data=True, location="outside.data", size_threshold=10)
    found = deltallm("inspect", outside, "--json").json
    assert found["metadata"]["deltallm.plan"] == {"rules": {"element per channel": [0, 1]}, "sha256": wide.sha256}
    for site, entry in zip(found["sites"], wide.layers, strict=True):
        assert site["threshold"] == [float(entry.threshold.min()), float(entry.threshold.max())]
        assert site["row_weight"] is False
    file = written(tmp_path / "deltallm.json", calibration(plan))
    assert deltallm("rewrite", dense, out, "--plan", file).code == 0
    found = deltallm("inspect", out, "--json").json
    assert [site["row_weight"] for site in found["sites"]] == [False, True]
    assert [site["settings"]["granularity"] for site in found["sites"]] == ["element", "row"]
    text = deltallm("inspect", out).out
    assert (
        f"deltallm.plan: element sigma or query in layer 0; row query-relative in layer 1; sha256 {plan.sha256}" in text
    )


ROW = random_plan(GEOMETRY)
DAMAGED = {
    "not JSON": ('{"format": "deltallm', r"calibration .*plan\.json is not JSON"),
    "a key twice": (
        '{"version": 1, "version": 1}',
        r"calibration .*plan\.json has a fault \(the key 'version' appears",
    ),
    "a number without end": ('{"version": ' + "9" * 5000 + "}", r"calibration .*plan\.json has a fault \(Exceeds"),
    "nested without end": ("[" * 100_000, r"calibration .*plan\.json is not JSON"),
    "a list": ([1], r"plan\.json is no calibration"),
    "another format": (calibration(ROW, format="deltallm"), r"plan\.json is no calibration"),
    "no format": (CONFIG.to_dict(), r"plan\.json is no calibration"),
    "another version": (calibration(ROW, version=2), "has version 2, and this deltallm-onnx reads version 1"),
    "text as version": (calibration(ROW, version="1"), "has version '1'"),
    "truth as version": (calibration(ROW, version=True), "has version True"),
    "no layers": ({k: v for k, v in calibration(ROW).items() if k != "layers"}, "has no 'layers': it is cut short"),
    "no config": ({k: v for k, v in calibration(ROW).items() if k != "config"}, "has no 'config': it is cut short"),
    "wrong config": (calibration(ROW, config={"window": -1}), "window is -1"),
    "unknown setting": (calibration(ROW, config={"windows": 1}), "the unknown key 'windows'"),
    "wrong layers": (calibration(ROW, layers={"0": 1}), "has no list of layers"),
    "a key is missing": (calibration(ROW, layers=[{"layer": 0}]), "has a layer without 'granularity'"),
    "another model's layers": (calibration(random_plan(GEOMETRY[:1])), "says nothing of attention layer 1"),
    "another model's heads": (
        calibration(random_plan([LayerGeometry(n, 6, 2, 8) for n in (0, 1)])),
        "The plan has 2 KV heads in layer 0, the model has 3",
    ),
    "another model's channels": (
        calibration(random_plan([LayerGeometry(n, 6, 3, 9) for n in (0, 1)], granularity="element")),
        "The plan has 9 channels per head in layer 0, the model has 8",
    ),
    "mixed rules in a float cache": (
        calibration(
            random_plan(GEOMETRY, row_rule=("relative", "absolute")),
            config=CONFIG.replace(cache_format="float32").to_dict(),
        ),
        "which one fallback function cannot serve",
    ),
}


def refused(outcome: Outcome) -> str:
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert "Traceback" not in outcome.err
    return outcome.err


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_calibration_is_refused(deltallm: Run, dense: Path, tmp_path: Path, name: str) -> None:
    data, sentence = DAMAGED[name]
    file = written(tmp_path / "plan.json", data)
    before = files_below(tmp_path)
    error = refused(deltallm("rewrite", dense, tmp_path / "delta.onnx", "--plan", file))
    assert re.search(sentence, error), error
    assert files_below(tmp_path) == before


def test_a_file_that_cannot_be_read_is_refused(deltallm: Run, dense: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.json", tmp_path):
        error = refused(deltallm("rewrite", dense, tmp_path / "delta.onnx", "--plan", path))
        assert f"Cannot read the calibration {path}" in error
    (tmp_path / "latin.json").write_bytes(b'{"format": "\xe9"}')
    error = refused(deltallm("rewrite", dense, tmp_path / "delta.onnx", "--plan", tmp_path / "latin.json"))
    assert "Cannot read the calibration" in error
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(LARGEST_BYTES + 1)
    error = refused(deltallm("rewrite", dense, tmp_path / "delta.onnx", "--plan", tmp_path / "huge.json"))
    assert "which no calibration has" in error


@pytest.mark.parametrize(
    "option",
    [
        ("--threshold", "0.5"),
        ("--granularity", "row"),
        ("--rule", "absolute"),
        ("--v-skip", "0.1"),
        ("--profile", "exact"),
        ("--config", "deltallm.json"),
    ],
)
def test_what_the_plan_says_is_not_said_twice(
    deltallm: Run, dense: Path, tmp_path: Path, plan: AttentionPlan, option: tuple[str, str]
) -> None:
    file = written(tmp_path / "deltallm.json", calibration(plan))
    for command in ("rewrite", "convert"):
        model = dense if command == "rewrite" else dense.parent
        error = refused(deltallm(command, model, tmp_path / "delta.onnx", "--plan", file, *option))
        assert f"{option[0]} is given beside --plan {file}" in error
    assert not (tmp_path / "delta.onnx").exists()
