"""Which deltallm.json goes with a model: the one of its name, or one that gave it its thresholds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.packages import CONFIG, files_of
from support.random_plans import random_plan
from support.tiny_decoder import HEAD_SIZE, KV_HEADS, LAYERS, QUERY_HEADS

from deltallm_onnx import AttentionPlan, rewrite
from deltallm_onnx.attention_plan import LayerGeometry
from deltallm_onnx.package import PackageRequest, package_model

GEOMETRY = tuple(LayerGeometry(layer, QUERY_HEADS, KV_HEADS, HEAD_SIZE) for layer in range(LAYERS))


def calibration(plan: AttentionPlan) -> dict[str, Any]:
    return {"format": "deltallm-calibration", "version": 1, "config": CONFIG.to_dict(), **plan.to_dict()}


def test_a_calibration_of_another_model_stays_behind(tiny: Path, tmp_path: Path) -> None:
    own, other = (random_plan(GEOMETRY, weighted=True, seed=seed) for seed in (1, 2))
    model = tmp_path / "planned.onnx"
    rewrite(tiny.with_name("tiny.onnx"), model, CONFIG, plan=own)
    usual = tmp_path / "deltallm.json"
    for name, plan in (("own", own), ("other", other)):
        usual.write_text(json.dumps(calibration(plan)))
        package_model(PackageRequest(model, "android-arm64", tmp_path / name))
        assert ("deltallm.json" in files_of(tmp_path / name)) == (name == "own")
    (tmp_path / "planned.deltallm.json").write_text(json.dumps(calibration(own)))
    package_model(PackageRequest(model, "android-arm64", tmp_path / "named"))
    assert "planned.deltallm.json" in files_of(tmp_path / "named")
    assert "deltallm.json" not in files_of(tmp_path / "named")
