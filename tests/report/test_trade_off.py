from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.report.drawing.scatter import pareto
from deltallm_onnx.report.trade_off import front, trade_off_section

COSTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=15)


@given(COSTS)
def test_the_front_is_what_no_point_beats(costs: list[tuple[int, int]]) -> None:
    def beaten(i: int) -> bool:
        a, b = costs[i]
        return any(x <= a and y <= b and (x, y) != (a, b) for x, y in costs)

    assert front(costs) == [not beaten(i) for i in range(len(costs))]


def _written(path: Path, **content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_points_of_both_files_make_one_front(tmp_path: Path) -> None:
    """A calibration's measurements are flat, a study's nested; more sparsity is better, fewer bytes are."""
    search = [
        {"window": 64, "kl": 0.01, "delta_sparsity": 0.5, "kv_bytes_per_token": 80.0},
        {"window": 64, "kl": 0.03, "delta_sparsity": 0.4, "kv_bytes_per_token": 90.0},
        {"window": 64, "kl": 0.005, "delta_sparsity": 0.1, "kv_bytes_per_token": 120.0},
    ]
    trials = [
        {"number": 0, "values": {"kl": 0.01, "counters": {"kv_bytes_per_token": 70.0}}, "seconds": 1.5},
        {"number": 1, "values": None},
        {"number": 2, "values": {"kl": float("nan"), "kv_bytes_per_token": 1.0}},
    ]
    search[0] |= {"knob": 0.01234, "factor": 1.0}
    search[1] |= {"knob": 0.05, "factor": 0.87654}
    files = [("calibration", _written(tmp_path / "a.json", search=search)), ("study", tmp_path / "b.json")]
    (tmp_path / "b.json").write_text(json.dumps({"trials": trials}))
    section = trade_off_section(files)
    assert section["saving"] == "kv_bytes_per_token"
    first, second = section["sources"]
    assert [point["on_front"] for point in first["points"]] == [False, False, True]
    assert [point.get("label") for point in first["points"]] == [
        "window 64, predicted kl 0.0123",
        "window 64, predicted kl 0.05, scales × 0.877",
        None,
    ]
    assert second["points"] == [{"kl": 0.01, "kv_bytes_per_token": 70.0, "seconds": 1.5, "on_front": True}]


def test_labels_and_points_without_divergence_are_kept(tmp_path: Path) -> None:
    """As bench/baselines writes them: the family is the label, and the dense model stands among the results."""
    results = [
        {"tuned": {"family": "x", "kl": 9.0}, "family": "int8", "kl": 0.01, "kv_bytes_per_token": 60.0},
        {"family": "float32", "kl": 0, "kv_bytes_per_token": 512.0},
    ]
    section = trade_off_section([("study", _written(tmp_path / "a.json", results=results))])
    assert section["sources"][0]["points"] == [
        {"label": "int8", "kl": 0.01, "kv_bytes_per_token": 60.0, "on_front": True},
        {"label": "float32", "kl": 0.0, "kv_bytes_per_token": 512.0, "on_front": True},
    ]
    picture = pareto(section, None)
    assert "1 measurements with a divergence" in picture.description
    drawn = [text.get_text() for text in picture.figure.axes[0].get_legend().get_texts()]
    assert drawn == ["int8", "front"]


def test_equal_bytes_are_no_axis(tmp_path: Path) -> None:
    """A float32 cache holds as many bytes whatever is held: sparsity is drawn then."""
    points = [{"kl": kl, "delta_sparsity": held, "kv_bytes_per_token": 512.0} for kl, held in ((0.1, 0.9), (0.2, 0.8))]
    section = trade_off_section([("study", _written(tmp_path / "a.json", trials=points))])
    assert section["saving"] == "delta_sparsity"
    assert [point["on_front"] for point in section["sources"][0]["points"]] == [True, False]


@pytest.mark.parametrize("content", [{}, {"trials": []}, {"trials": [{"kl": 0.1}, 3]}, {"search": {"kl": 1}}])
def test_a_file_without_measurements_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    with pytest.raises(DeltaLLMError, match="holds no measurement with kl"):
        trade_off_section([("study", _written(tmp_path / "a.json", **content))])
