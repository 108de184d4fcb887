"""The plan bounds what a process really takes: never less than the measured peak, at most one and a half times of it.

Each model is opened, reads a prompt and decodes in a process of its own, which says by how much it grew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from support.memory_models import LARGE_VOCABULARY

from deltallm_onnx.bench import run_child
from deltallm_onnx.memory.activations import call_memory
from deltallm_onnx.memory.call_shapes import CallSizes
from deltallm_onnx.memory.plan import plan_memory
from deltallm_onnx.runtime.session_settings import LOW_MEMORY, SessionSettings

#: The same system may load a library's pages or round a heap differently: the better of so many runs counts.
_RUNS = 2
_TIGHT = 1.5
_DECODED = 3
_DEMO_VOCABULARY = 4000


def check(
    model: Path, vocabulary: int, context: int, *, chunk: int | None = None, settings: SessionSettings | None = None
) -> None:
    plan = plan_memory(model, context, prompt_chunk=chunk)
    request = {
        "model": str(model),
        "settings": dataclasses.asdict(settings or SessionSettings()),
        "vocabulary": vocabulary,
        "context": context,
        "chunk": chunk or context,
        "steps": _DECODED,
        "threads": 1,
    }
    measured = []
    for _ in range(_RUNS):
        found = run_child("bench.memory_child", request)
        assert plan.cache_bytes == found["kv_bytes"]
        measured.append(found["peak_bytes"])
        if min(measured) <= plan.total_bytes <= _TIGHT * min(measured):
            return
    raise AssertionError(f"planned {plan.total_bytes}, measured {measured}: {plan}")


@pytest.mark.parametrize("context", [61, 1021])
@pytest.mark.parametrize("weights", ["float32", "int4"])
@pytest.mark.parametrize("cache_format", ["float32", "int8", "int4"])
def test_the_bundled_model(demo: Callable[[str, str], Path], cache_format: str, weights: str, context: int) -> None:
    check(demo(cache_format, weights), _DEMO_VOCABULARY, context)


@pytest.mark.parametrize("form", [("float32", "float32"), ("int8", "int4"), ("int8", "float16")], ids="-".join)
def test_the_call_of_a_file_without_annotations(demo: Callable[[str, str], Path], form: tuple[str, str]) -> None:
    """Shapes that the file does not say are found all the same, behind operators that ONNX does not know too."""
    model = onnx.load(demo(*form), load_external_data=False)
    for sizes in (
        CallSizes(batch=3, new_tokens=19, total_tokens=41),
        CallSizes(batch=1, new_tokens=1, total_tokens=700),
    ):
        expected = call_memory(model, sizes)
        bare = onnx.ModelProto.FromString(model.SerializeToString())
        del bare.graph.value_info[:]
        assert call_memory(bare, sizes) == expected


@pytest.mark.parametrize("weights", ["float16", "int8"])
def test_weights_that_are_widened_or_have_scales(demo: Callable[[str, str], Path], weights: str) -> None:
    check(demo("int8", weights), _DEMO_VOCABULARY, 301)


def test_caches_that_cannot_be_shared(demo_dense: Path) -> None:
    check(demo_dense, _DEMO_VOCABULARY, 513)


@pytest.mark.parametrize("settings", [SessionSettings(), LOW_MEMORY], ids=["defaults", "low memory"])
def test_a_prompt_in_chunks(demo: Callable[[str, str], Path], settings: SessionSettings) -> None:
    check(demo("int8", "int4"), _DEMO_VOCABULARY, 1021, chunk=128, settings=settings)


@pytest.mark.parametrize("context", [37, 211])
def test_a_large_vocabulary(large_vocabulary: Path, context: int) -> None:
    check(large_vocabulary, LARGE_VOCABULARY, context)
