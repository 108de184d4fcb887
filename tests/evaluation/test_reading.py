"""What a mode reads, against the same tokens fed to the file itself call by call."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.evaluation_models import ELEMENT, ROW, TOLERANCE, Rewritten
from support.tiny_decoder import VOCABULARY

from deltallm_onnx.evaluation import Reader, Trial, compare, delta_form, score
from deltallm_onnx.evaluation import reading as module
from deltallm_onnx.evaluation.reading import calls
from deltallm_onnx.runtime import DecoderModel

PROMPT = 40


def stepwise(path: Path, window: np.ndarray, prompt: int) -> np.ndarray:
    """Logits [S, V]: a prompt by one call, the other tokens one by one."""
    model = DecoderModel(path)
    cache = model.new_cache()
    parts = [model.step(window[None, :prompt], cache)[0][0]] if prompt else []
    parts += [model.step(window[None, t : t + 1], cache)[0][0] for t in range(prompt, len(window))]
    return np.concatenate(parts)


@pytest.mark.parametrize("cache_format", ["float32", "int8", "int4"])
@pytest.mark.parametrize("mode", ["prefill+decode", "prefill", "decode"])
def test_a_mode_reads_what_the_file_would(
    rewritten: Rewritten, dense_path: Path, windows: np.ndarray, mode: module.Mode, cache_format: str
) -> None:
    """Of a file written with the other prefill setting, so that the mode has to decide."""
    config = ROW.replace(cache_format=cache_format)
    written, other = ("exact", "delta") if mode != "decode" else ("delta", "exact")
    trial = Trial(Reader(rewritten(config.replace(prefill=written)), mode), Reader(dense_path, mode))
    path = rewritten(config.replace(prefill=other))
    first = PROMPT + 1 if mode == "decode" else 1
    for window in windows:
        result = trial.read(window, prompt=PROMPT)
        logits = stepwise(path, window, {"prefill+decode": 0, "prefill": len(window) - 1, "decode": PROMPT}[mode])
        dense = stepwise(dense_path, window, 0)
        expected = score(logits[first - 1 : -1], window[first:], dense[first - 1 : -1])
        assert len(result.predictions.loss) == len(window) - first
        np.testing.assert_allclose(result.predictions.loss, expected.loss, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(result.predictions.kl, expected.kl, rtol=0, atol=TOLERANCE)
        np.testing.assert_array_equal(result.predictions.agree, expected.agree)
        assert expected.kl is not None
        assert expected.kl.mean() > 1e-3, "held keys were to change something"


def test_scores_begin_where_they_are_asked_for(rewritten: Rewritten, windows: np.ndarray) -> None:
    trial = Trial(Reader(rewritten(ROW), "prefill+decode"))
    whole = trial.read(windows[0]).predictions
    for first in (1, 2, 50, 96):
        found = trial.read(windows[0], first=first).predictions
        np.testing.assert_array_equal(found.loss, whole.loss[first - 1 :])
    assert whole.kl is None


@pytest.mark.parametrize("mode", ["prefill+decode", "decode"])
def test_large_vocabularies_are_read_in_parts(
    rewritten: Rewritten, dense_path: Path, windows: np.ndarray, monkeypatch: pytest.MonkeyPatch, mode: module.Mode
) -> None:
    trial = Trial(Reader(rewritten(ELEMENT), mode), Reader(dense_path, mode))
    whole = trial.read(windows[0], prompt=PROMPT)
    monkeypatch.setattr(module, "LOGITS_BYTES", 4 * VOCABULARY * 11 + 5)
    assert max(call.end - call.begin for call in calls("prefill+decode", 97, 0, VOCABULARY)) == 11
    parts = trial.read(windows[0], prompt=PROMPT)
    for name in ("loss", "baseline_loss", "kl"):
        found, expected = (getattr(result.predictions, name) for result in (parts, whole))
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    for result in (parts, whole):
        assert result.use.counters is not None
    assert parts.use == whole.use


@given(
    st.sampled_from(["prefill+decode", "prefill", "decode"]),
    st.integers(3, 5000),
    st.floats(0, 1),
    st.integers(1, 300_000),
)
def test_calls_read_every_token_once_and_the_last_one_alone(
    mode: module.Mode, tokens: int, share: float, vocabulary: int
) -> None:
    prompt = 1 + round(share * (tokens - 3))
    plan = calls(mode, tokens, prompt, vocabulary)
    assert [t for call in plan for t in range(call.begin, call.end)] == list(range(tokens))
    assert (plan[-1].begin, plan[-1].end, plan[-1].decodes) == (tokens - 1, tokens, True)
    prompts = [call for call in plan if not call.decodes]
    expected = {"prefill+decode": [], "prefill": [(0, tokens - 1)], "decode": [(0, prompt)]}[mode]
    assert [(call.begin, call.end) for call in prompts] == expected
    for call in plan[len(prompts) :]:
        assert (call.end - call.begin) * vocabulary * 4 <= module.LOGITS_BYTES or call.end - call.begin == 1


def test_a_trial_scores_what_compare_scores(rewritten: Rewritten, dense_path: Path, windows: np.ndarray) -> None:
    path = rewritten(ROW)
    trial = Trial(Reader(path, "prefill+decode"), Reader(dense_path, "prefill+decode"))
    results = [trial.read(window).predictions for window in windows]
    reference, scored = compare(DecoderModel(dense_path), delta_form(path), windows)
    assert scored.tokens == sum(len(result.loss) for result in results)
    for name, value in (
        ("loss", np.log(scored.perplexity)),
        ("baseline_loss", np.log(reference.perplexity)),
        ("kl", scored.kl_to_reference),
    ):
        found = np.mean([getattr(result, name) for result in results])
        assert found == pytest.approx(value, abs=TOLERANCE)


def test_caches_of_a_dense_model_are_measured_too(dense_path: Path, windows: np.ndarray) -> None:
    trial = Trial(Reader(dense_path, "prefill+decode"), Reader(dense_path, "prefill+decode"))
    result = trial.read(windows[0])
    assert result.use == result.baseline_use
    assert result.use.counters is None
    assert result.use.bytes_in_use == 97 * 2 * 3 * 8 * 4 * 2
    np.testing.assert_array_equal(result.predictions.kl, 0)
