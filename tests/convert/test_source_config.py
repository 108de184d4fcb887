"""A config.json beside an export: what it says of the attention is held against the graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from support.attention_models import exporter_mask
from support.softmax_models import Spelling, softmax_model

import deltallm_onnx
from deltallm_onnx import DeltaLLMError, profile
from deltallm_onnx.inspect import inspect_model
from deltallm_onnx.source_config import read_source_config

EXACT = profile("exact")


def export(folder: Path, config: Any, **spelling: Any) -> Path:
    onnx.save(softmax_model(Spelling(layers=2, **spelling)), folder / "model.onnx")
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return folder / "model.onnx"


def test_a_dropped_softcap_is_refused(tmp_path: Path) -> None:
    model = export(tmp_path, {"attn_logit_softcapping": 50.0})
    with pytest.raises(DeltaLLMError, match="softcap of 50 and layer 0 of the graph has none: the exporter dropped"):
        deltallm_onnx.rewrite(model, tmp_path / "out.onnx", EXACT)
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(("given", "is_right"), [(1.5, True), (1.6, False), (None, True)])
def test_softcaps_are_compared(tmp_path: Path, given: float | None, *, is_right: bool) -> None:
    model = export(tmp_path, {"attn_logit_softcapping": given}, softcap=1.5)
    if is_right:
        assert deltallm_onnx.rewrite(model, tmp_path / "out.onnx", EXACT).rewrite.rewritten == 2
    else:
        with pytest.raises(DeltaLLMError, match=r"the graph has one of 1\.5: the exporter changed it"):
            deltallm_onnx.rewrite(model, tmp_path / "out.onnx", EXACT)


@pytest.mark.parametrize(
    ("config", "window", "remark"),
    [
        ({"sliding_window": 4, "num_hidden_layers": 2}, 4, None),
        (
            {"sliding_window": 4, "num_hidden_layers": 2},
            0,
            "has no sliding window in the graph and a sliding window of 4",
        ),
        ({"sliding_window": 4, "num_hidden_layers": 2, "use_sliding_window": False}, 0, None),
        ({"sliding_window": 4, "layer_types": ["full_attention"] * 2}, 4, "a sliding window of 4 in the graph and no"),
        (
            {"text_config": {"sliding_window": 3, "num_hidden_layers": 2}},
            4,
            "of 4 in the graph and a sliding window of 3 in",
        ),
        ({"num_hidden_layers": 1}, 0, None),
        ({}, 4, None),
    ],
)
def test_other_windows_are_told(config: dict[str, Any], window: int, remark: str | None, tmp_path: Path) -> None:
    """The graph decides what is computed; what was meant may have been dropped by the exporter."""
    model = export(tmp_path, config, seen=exporter_mask(window))
    lines = deltallm_onnx.rewrite(model, tmp_path / "out.onnx", EXACT).rewrite.lines
    told = [line for line in lines if "in the graph and" in line]
    assert len(told) == (0 if remark is None else 2)
    assert remark is None or remark in told[0]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", "cannot be read as JSON"),
        ([1], "holds no JSON object"),
        ({"attn_logit_softcapping": "50"}, "attn_logit_softcapping = '50', which is no size"),
        ({"sliding_window": -4, "num_hidden_layers": 2}, "sliding_window = -4, which is no size"),
        ({"num_hidden_layers": True}, "num_hidden_layers = True, which is no size"),
    ],
)
def test_a_malformed_config_is_refused(config: Any, words: str, tmp_path: Path) -> None:
    model = export(tmp_path, config)
    with pytest.raises(DeltaLLMError) as refusal:
        deltallm_onnx.rewrite(model, tmp_path / "out.onnx", EXACT)
    assert words in str(refusal.value)
    assert not (tmp_path / "out.onnx").exists()


def test_no_config_is_nothing_to_compare(tmp_path: Path) -> None:
    assert read_source_config(tmp_path) is None


@pytest.mark.parametrize("form", ["Softmax", "Attention"])
def test_inspect_lists_decomposed_attention(form: str, tmp_path: Path) -> None:
    spelling = {"operator": form == "Attention", "mask": "bias", "opset": 23, "seen": exporter_mask(4), "softcap": 1.5}
    sites = inspect_model(export(tmp_path, {}, **spelling)).sites
    assert [(site.layer, site.op) for site in sites] == [(0, f"ai.onnx::{form}"), (1, f"ai.onnx::{form}")]
    assert [(site.num_heads, site.kv_num_heads, site.head_size) for site in sites] == [(6, 2, 5)] * 2
    assert sites[0].settings == {"scale": pytest.approx(0.37), "softcap": 1.5, "local_window_size": 4}


def test_inspect_says_why_it_is_not_understood(tmp_path: Path) -> None:
    (first, _) = inspect_model(export(tmp_path, {}, heads="tiled")).sites
    assert "repeats all heads one after the other" in first.settings["declined"]
    assert first.num_heads is None
