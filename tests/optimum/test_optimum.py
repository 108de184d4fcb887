"""Exports of optimum-onnx before and after the rewriting, in its own `ORTModelForCausalLM` (`make peers`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from support import hf_reference, optimum_environment, scenario_files
from support.optimum_models import MODELS

import deltallm_onnx
from deltallm_onnx import DeltaLLMError, profile
from deltallm_onnx.runtime import ops_library_path

#: A window and sinks far below the length of the texts, so that rows are coded (with θ = 0: as they are).
EXACT = profile("exact").replace(window=3, sinks=1)
#: Float32 logits of a few layers, standard deviation about 1, computed in two orders.
TOLERANCE = 1e-4

#: Exports that are refused, with words of the reason.
REFUSED = {
    "gemma2_sdpa": "has none: the exporter dropped it",
    "gpt_oss": "attention sinks",
}
REWRITTEN = [name for name in MODELS if name not in REFUSED]
#: What the table says beside a number, or in its place.
REMARKS = {
    "Gemma2": 'exported with attn_implementation="eager": the default, SDPA, loses the softcap of the scores',
    "GPT-OSS": "its attention sinks are one more column of the scores: refused",
}


@dataclasses.dataclass(frozen=True)
class Work:
    """Where everything lies; the rewriting of a model that failed has its error here."""

    folder: Path
    errors: dict[str, DeltaLLMError]

    def source(self, name: str) -> Path:
        return self.folder / name / "onnx"

    def rewritten(self, name: str) -> Path:
        if name in self.errors:
            raise self.errors[name]
        return self.folder / name / "rewritten"

    def generated(self, name: str, form: str) -> optimum_environment.Generated:
        return optimum_environment.generated(self.folder / name / f"{form}.npz")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """All models exported, rewritten, and put to generate, in two processes."""
    work = Work(tmp_path_factory.mktemp("optimum"), {})
    optimum_environment.export(list(MODELS), work.folder)
    jobs = []
    for name in MODELS:
        optimum_environment.refuse_failure(work.folder / name)
        try:
            report = deltallm_onnx.rewrite(work.source(name), work.rewritten(name), EXACT, statistics=False)
        except DeltaLLMError as error:
            work.errors[name] = error
            continue
        # config.json agrees with what the graph was found to compute
        assert not [line for line in report.rewrite.lines if "rewritten as the graph computes it" in line], name
        jobs += [
            (work.source(name), False, work.folder / name / "source.npz"),
            (work.rewritten(name), True, work.folder / name / "library.npz"),
            (work.rewritten(name), False, work.folder / name / "fallback.npz"),
        ]
    optimum_environment.generate(jobs, work.folder)
    return work


def session(model: Path, *, library: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    if library:
        options.register_custom_ops_library(str(ops_library_path()))
    return onnxruntime.InferenceSession(model / "model.onnx", options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", REWRITTEN)
def test_same_tokens_and_logits(name: str, work: Work, architecture_cell: Callable[..., None]) -> None:
    rewritten, source = session(work.rewritten(name), library=True), session(work.source(name), library=False)
    difference = 0.0
    for scenario in scenario_files.load(work.folder / name / "eager.npz"):
        before, after = hf_reference.run(source, scenario), hf_reference.run(rewritten, scenario)
        for step, one, other in zip(scenario.steps, before, after, strict=True):
            difference = max(difference, float(np.abs(one - other)[step.real].max()))
            wrong = float(np.abs(one - step.logits)[step.real].max())
            assert wrong < TOLERANCE, f"the export is no longer its checkpoint: {wrong}"
    text = work.generated(name, "source")
    assert len(set(text.tokens.ravel().tolist())) > 9, "a text that repeats itself would prove little"
    for form in ("library", "fallback"):
        again = work.generated(name, form)
        np.testing.assert_array_equal(again.tokens, text.tokens, err_msg=form)
        difference = max(difference, float(np.abs(again.logits - text.logits).max()))
    assert difference < TOLERANCE
    architecture = MODELS[name].name
    if architecture is not None:
        architecture_cell(architecture, "optimum", difference=difference, reason=REMARKS.get(architecture))


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, work: Work, architecture_cell: Callable[..., None]) -> None:
    with pytest.raises(DeltaLLMError, match=REFUSED[name]):
        work.rewritten(name)
    assert not (work.folder / name / "rewritten").exists()
    architecture = MODELS[name].name
    if architecture is not None:
        architecture_cell(architecture, "optimum", reason=REMARKS[architecture])
