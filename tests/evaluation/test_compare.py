from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support.tiny_decoder import VOCABULARY, tiny_decoder

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.evaluation import compare, text_windows
from deltallm_onnx.runtime import DecoderModel

WINDOWS = np.random.default_rng(21).integers(0, VOCABULARY, (3, 19))


def with_head(folder: Path, scale: float) -> DecoderModel:
    """The tiny model with its logits multiplied by a factor."""
    model = tiny_decoder()
    head = next(t for t in model.graph.initializer if t.name == "head")
    head.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(head) * np.float32(scale), "head"))
    onnx.save(model, folder / f"{scale}.onnx")
    return DecoderModel(folder / f"{scale}.onnx")


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity(tmp_path: Path) -> None:
    model = with_head(tmp_path, 1.0)
    flat, _ = compare(with_head(tmp_path, 0.0), model, WINDOWS)
    assert flat.perplexity == pytest.approx(VOCABULARY, rel=1e-6)
    assert flat.tokens == 3 * 18


def test_the_same_model_has_no_divergence(tmp_path: Path) -> None:
    model = with_head(tmp_path, 1.0)
    one, other = compare(model, model, WINDOWS)
    assert one.perplexity == other.perplexity
    assert other.kl_to_reference == 0


def test_scores_equal_sums_written_out(tmp_path: Path) -> None:
    """The oracle runs token by token and sums in plain Python."""
    dense, sharper = with_head(tmp_path, 1.0), with_head(tmp_path, 1.5)
    expected_nll, expected_kl = [0.0, 0.0], 0.0
    for window in WINDOWS:
        caches = dense.new_cache(), sharper.new_cache()
        for token, following in itertools.pairwise(window):
            p, q = (
                _softmax(m.step(np.array([[token]]), c)[0][0, 0]) for m, c in zip((dense, sharper), caches, strict=True)
            )
            expected_nll[0] -= math.log(p[following])
            expected_nll[1] -= math.log(q[following])
            expected_kl += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    scores = compare(dense, sharper, WINDOWS)
    for score, nll in zip(scores, expected_nll, strict=True):
        assert score.perplexity == pytest.approx(math.exp(nll / (3 * 18)), rel=1e-5)
    assert scores[0].kl_to_reference == 0
    assert scores[1].kl_to_reference == pytest.approx(expected_kl / (3 * 18), rel=1e-4)
    assert scores[1].kl_to_reference > 0.01


def test_a_model_that_gives_nan_has_no_score(tmp_path: Path) -> None:
    model, broken = with_head(tmp_path, 1.0), with_head(tmp_path, math.nan)
    with pytest.raises(DeltaLLMError, match=r"nan\.onnx gives NaN"):
        compare(model, broken, WINDOWS)


def test_windows_spread_over_the_text_without_overlap() -> None:
    windows = text_windows(list(range(100)), length=30, count=3)
    assert windows.tolist() == [list(range(start, start + 30)) for start in (0, 33, 66)]
    begun = text_windows(list(range(100)), length=30, count=3, begin=[7])
    assert begun.tolist() == [[7, *range(start, start + 29)] for start in (0, 33, 66)]


@pytest.mark.parametrize(("tokens", "length", "count"), [(89, 30, 3), (100, 1, 3), (100, 30, 0)])
def test_too_little_to_score_is_refused(tokens: int, length: int, count: int) -> None:
    with pytest.raises(DeltaLLMError, match="windows of"):
        text_windows(list(range(tokens)), length, count)


def _softmax(logits: np.ndarray) -> list[float]:
    weights = [math.exp(value - float(logits.max())) for value in logits.tolist()]
    return [weight / sum(weights) for weight in weights]
