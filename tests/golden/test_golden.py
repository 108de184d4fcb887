"""What rewriting changes in the graph of every architecture, as text to be read; `make golden` writes it anew."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
from support.tiny_models import ARCHITECTURES, exported, shared_directory

from deltallm_onnx import DeltaConfig, diff
from deltallm_onnx.passes import rewrite_model

FOLDER = Path(__file__).parent
#: No setting has its default, so that none is left out unseen.
CONFIG = DeltaConfig(
    threshold=0.5,
    window=24,
    sinks=3,
    granularity="element",
    row_rule="absolute",
    refresh=64,
    v_skip=0.125,
    prefill="delta",
    cache_format="float16",
    prefill_compute="bfloat16",
)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_structure(name: str, tmp_path_factory: pytest.TempPathFactory, *, update_golden: bool) -> None:
    dense = exported(name, shared_directory(tmp_path_factory))
    delta = ir.load(dense)
    rewrite_model(delta, CONFIG, statistics=True)
    text = diff(ir.load(dense), delta, ignore=["metadata"]).to_text().rstrip() + "\n"
    golden = FOLDER / f"{name}.txt"
    if update_golden:
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8"), "read the difference; if it is meant, run 'make golden'"


def test_no_golden_graph_is_left_over() -> None:
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(ARCHITECTURES)
