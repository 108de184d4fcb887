"""The traps of onnxruntime-genai's model builder: each is told where it is, and not where it is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from support.attention_models import GraphBuilder
from support.genai_folders import genai_config, write_genai_folder

import deltallm_onnx
from deltallm_onnx import profile

Edit = Callable[[GraphBuilder], None]
VOCABULARY = genai_config()["model"]["vocab_size"]
WINDOW = {"window_size": 9, "slide_key_value_cache": False, "slide_inputs": False, "layers": [], "cache_slack": 0}
WIDTH = 96  # channels of output.0

TRAPS = ("sliding window of 9 tokens", "as many as the vocabulary has tokens", "accuracy_level 0", "zero points")


def traps(
    folder: Path, config: dict[str, Any] | None = None, changed: Edit | None = None, **attributes: Any
) -> set[str]:
    """Which of TRAPS a rewrite tells of."""
    source = write_genai_folder(folder / "in", config, changed=changed, **attributes)
    report = deltallm_onnx.rewrite(source, folder / "out", profile("exact"))
    assert all(note.endswith(".") for note in report.notes)
    assert len(set(report.notes)) == len(report.notes)
    return {trap for trap in TRAPS for note in report.notes if trap in note}


def products(*widths: int) -> Edit:
    """Matrix products behind the attention, named as an MLP and a head are."""

    def edit(g: GraphBuilder) -> None:
        for width in widths:
            product = g.node("MatMul", "output.0", g.constant(np.ones((WIDTH, width)), np.float32))
            g.output(g.node("Relu", product), TensorProto.FLOAT, ["batch", "sequence", width])

    return edit


def quantised(*kinds: tuple[int, bool]) -> Edit:
    """MatMulNBits with so much accuracy, with zero points or without."""

    def edit(g: GraphBuilder) -> None:
        for index, (level, asymmetric) in enumerate(kinds):
            width, blocks = 37 + index, WIDTH // 32
            inputs = ["output.0", g.constant(np.zeros((width, blocks, 16)), np.uint8)]
            inputs.append(g.constant(np.ones((width, blocks)), np.float32))
            if asymmetric:
                inputs.append(g.constant(np.zeros((width, (blocks + 1) // 2)), np.uint8))
            attributes = {"K": WIDTH, "N": width, "bits": 4, "block_size": 32}
            if level:
                attributes["accuracy_level"] = level
            name = f"quantised_{index}"
            g.nodes.append(helper.make_node("MatMulNBits", inputs, [name], domain="com.microsoft", **attributes))
            g.output(name, TensorProto.FLOAT, ["batch", "sequence", width])

    return edit


def test_a_model_without_traps(tmp_path: Path) -> None:
    assert traps(tmp_path, changed=products(VOCABULARY, 45)) == set()


def test_a_window_that_was_dropped(tmp_path: Path) -> None:
    assert traps(tmp_path, genai_config(sliding_window=WINDOW)) == {TRAPS[0]}


def test_a_window_that_is_there(tmp_path: Path) -> None:
    config = genai_config(sliding_window={**WINDOW, "layers": [0, 1]})
    assert traps(tmp_path, config, local_window_size=9, sliding_window_cache=1) == set()


def test_a_layer_as_wide_as_the_vocabulary(tmp_path: Path) -> None:
    """The head alone is no trap; a second such product is."""
    assert traps(tmp_path, changed=products(VOCABULARY, VOCABULARY)) == {TRAPS[1]}


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (((4, False), (4, False)), set()),
        (((4, False), (0, False)), {TRAPS[2]}),
        (((4, True), (4, False)), {TRAPS[3]}),
        (((0, True),), {TRAPS[2]}),
    ],
)
def test_quantised_products(tmp_path: Path, kinds: tuple[tuple[int, bool], ...], expected: set[str]) -> None:
    assert traps(tmp_path, changed=quantised(*kinds)) == expected


def test_counts_are_told(tmp_path: Path) -> None:
    source = write_genai_folder(tmp_path / "in", changed=quantised((4, False), (0, False), (0, False)))
    notes = deltallm_onnx.rewrite(source, tmp_path / "out", profile("exact")).notes
    assert notes[0].startswith("2 of 3 MatMulNBits nodes have accuracy_level 0")
