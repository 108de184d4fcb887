"""Older releases of ONNX Runtime (`make peers`): which models they load, and that they compute what the newest does."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from support import hf_reference, onnxruntime_program, peers, tiny_models
from support.attention_models import runner
from support.grouped_query_models import grouped_query_feeds, grouped_query_model
from support.onnxruntime_releases import OLDER, version
from support.sdpa_export import export_sdpa

from deltallm_onnx import DeltaConfig
from deltallm_onnx.passes import rewrite_model
from deltallm_onnx.runtime import ops_library_path

#: What ONNX Runtime 1.17 and 1.18 read; opset 20 came with it.
OLDEST_IR_VERSION = 9
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Case:
    """A rewritten model with calls and what must come out of them.

    Attributes:
        model: the .onnx file.
        library: whether the operator library is registered; else the model's own functions run.
        oldest: minor release from which on it loads: the first that knows its opset and IR version.
        calls: file of feeds.
        expected: per call, name → (array, where it means something).
    """

    model: Path
    library: bool
    oldest: str
    calls: Path
    expected: list[dict[str, tuple[Any, Any]]]


def grouped_query_cases(folder: Path) -> dict[str, Case]:
    """Models as onnxruntime-genai's builders write them: opset 21, and 22 since its version 0.18; and opset 20."""
    dense = grouped_query_model(packed=True, rotary=True, local_window_size=4)
    sizes = (([9, 5], 9, True), ([12, 12], 1, False), ([13], 4, False))
    feeds = [
        grouped_query_feeds(dense, lengths, new, prompt=prompt, seed=seed)
        for seed, (lengths, new, prompt) in enumerate(sizes)
    ]
    onnxruntime_program.save_calls(folder / "grouped_query.npz", feeds)
    run = runner(dense)
    expected = []
    for (lengths, new, _), call in zip(sizes, feeds, strict=True):
        # what right padding computes means nothing
        real = np.arange(new) < np.minimum(new, lengths)[:, None]
        expected.append({name: (array, real) for name, array in run(call).items() if name.startswith("output")})
    cases = {}
    for opset, oldest in ((20, "1.17"), (21, "1.20"), (22, "1.21")):
        graph = ir.serde.deserialize_model(dense)
        graph.opset_imports[""] = opset
        graph.ir_version = OLDEST_IR_VERSION if opset <= 20 else graph.ir_version
        rewrite_model(graph, DeltaConfig(threshold=0.0, cache_format="float32"))
        path = folder / f"grouped_query_{opset}.onnx"
        ir.save(graph, path)
        for library in (True, False):
            kind = "library" if library else "fallback"
            cases[f"genai {opset} {kind}"] = Case(path, library, oldest, folder / "grouped_query.npz", expected)
    return cases


def export_cases(folder: Path) -> dict[str, Case]:
    """Our own exports, which are opset 23, and those of users from 18 on: a padded batch, three calls on one cache."""
    ours, sdpa = tiny_models.exported("llama", folder), folder / "sdpa.onnx"
    export_sdpa(ours.parent / "model", sdpa, opset=18)
    scenarios = hf_reference.scenarios(hf_reference.load_eager(ours.parent / "model"))
    steps = next(scenario for scenario in scenarios if scenario.name == "left padding").steps
    fields = ("input_ids", "attention_mask", "position_ids")
    calls = [{field: getattr(step, field) for field in fields} for step in steps]
    onnxruntime_program.save_calls(folder / "export.npz", calls)
    exact = [{"logits": (step.logits, step.real)} for step in steps]
    cases = {}
    for name, dense, oldest in (("export", ours, "1.23"), ("sdpa", sdpa, "1.17")):
        for cache in ("float32", "int8"):
            graph = ir.load(dense)
            graph.ir_version = OLDEST_IR_VERSION if name == "sdpa" else graph.ir_version
            rewrite_model(graph, DeltaConfig(threshold=0.0, window=8, sinks=2, cache_format=cache))
            path = folder / f"{name}_{cache}.onnx"
            ir.save(graph, path, external_data=f"{path.name}.data")
            if cache == "float32":
                cases[f"{name} library"] = Case(path, True, oldest, folder / "export.npz", exact)
                cases[f"{name} fallback"] = Case(path, False, oldest, folder / "export.npz", exact)
                continue
            # a packed cache has no oracle but the newest release
            newest = onnxruntime_program.run_calls(open_session(path), calls)
            packed = [{"logits": (got["logits"], step.real)} for got, step in zip(newest, steps, strict=True)]
            cases[f"{name} int8"] = Case(path, True, oldest, folder / "export.npz", packed)
    return cases


def open_session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(ops_library_path()))
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    folder = tmp_path_factory.mktemp("models")
    return grouped_query_cases(folder) | export_cases(folder)


@pytest.mark.parametrize("release", OLDER)
def test_older_onnxruntime(release: str, cases: dict[str, Case], tmp_path: Path) -> None:
    jobs = [
        {
            "model": str(case.model),
            "library": str(ops_library_path()) if case.library else None,
            "calls": str(case.calls),
            "out": str(tmp_path / f"{number}.npz"),
        }
        for number, case in enumerate(cases.values())
    ]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    answer = json.loads(peers.run(f"onnxruntime-{release}", "onnxruntime_program", [tmp_path / "jobs.json"]))
    assert answer["version"] == release
    for (name, case), job, state in zip(cases.items(), jobs, answer["states"], strict=True):
        if version(release) < version(case.oldest):
            assert "opset" in state.lower() or "model IR version" in state, f"{name}: {state}"
            continue
        assert state == "ok", f"{name}: {state}"
        results = onnxruntime_program.load_calls(Path(job["out"]))
        for result, wanted in zip(results, case.expected, strict=True):
            for output, (array, real) in wanted.items():
                error = np.abs(result[output] - array)[real].max()
                # one unit of an int8 code, where rounding fell the other way, may become a thousandth of a logit
                bound = 100 * TOLERANCE if name.endswith("int8") else TOLERANCE
                assert error < bound, f"{name} differs by {error:.1e} in {output}"
