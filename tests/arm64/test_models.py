"""The bundled model in ARM64's ONNX Runtime, from Python and from C++: logits and tokens are those of this machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from support.arm64 import Guest, arm64_runner

from deltallm_onnx import DeltaConfig, rewrite
from deltallm_onnx.export import export_model
from deltallm_onnx.ort_format import write_ort
from deltallm_onnx.runtime import DecoderModel, TextTokenizer, generate, ops_library_path

DEMO = Path(__file__).parents[2] / "models" / "demo"
TEXT = "She had never seen the sea before, and she stood a long time looking at the water"
NEW = 48
#: Half of the sequence lies behind the window, where rows are held.
CONFIG = DeltaConfig(threshold=0.8, window=24, sinks=4, prefill="delta")
#: Largest difference of a logit as a share of the largest: sums in another order (measured 5e-7), and int8 codes that
#: round the other way where a key lies so near the middle between two (measured 4e-4).
SHARE = {"float32": 1e-5, "int8": 2e-3}


@dataclasses.dataclass(frozen=True)
class Here:
    """A model, what it says on this machine, and the sequence it read: prompt and its own tokens but the last."""

    path: Path
    prompt: list[int]
    tokens: list[int]
    logits: np.ndarray

    @property
    def sequence(self) -> np.ndarray:
        return np.array([[*self.prompt, *self.tokens[:-1]]])

    @property
    def ends(self) -> list[int]:
        return [*range(len(self.prompt), self.sequence.shape[1] + 1)]

    @property
    def largest(self) -> float:
        return float(np.abs(self.logits).max())


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Here]:
    folder = tmp_path_factory.mktemp("demo")
    dense = export_model(DEMO, folder / "dense.onnx").path
    prompt = TextTokenizer(DEMO).encode(TEXT)
    found = {}
    for cache_format in SHARE:
        path = rewrite(dense, folder / f"{cache_format}.onnx", CONFIG.replace(cache_format=cache_format)).path
        model = DecoderModel(path)
        tokens = list(generate(model, prompt, max_new_tokens=NEW).tokens)
        cache, parts, begin = model.new_cache(), [], 0
        sequence = np.array([[*prompt, *tokens[:-1]]])
        for end in range(len(prompt), sequence.shape[1] + 1):
            parts.append(model.step(sequence[:, begin:end], cache)[0])
            begin = end
        found[cache_format] = Here(path, prompt, tokens, np.concatenate(parts, axis=1))
        write_ort(path, path.with_suffix(".ort"), platform="arm")
    return found


@pytest.fixture(scope="module")
def bodies(here: dict[str, Here]) -> Path:
    """An .ort with the function bodies written out."""
    source = here["float32"].path
    return write_ort(source, source.with_name("bodies.ort"), form="fallback", platform="arm").model


def add(guest: Guest, name: str, path: Path, model: DecoderModel, here: Here, *, library: bool) -> None:
    """Ask for the logits of a sequence."""
    length = here.sequence.shape[1]
    arrays = {
        "input_ids": here.sequence,
        "attention_mask": np.ones_like(here.sequence),
        "position_ids": np.arange(length)[None],
    }
    arrays = {input_name: arrays[input_name] for input_name in model.signature.input_types}
    for cache in model.signature.caches:
        rows = cache.capacity_for(length) if library else 0
        arrays[cache.past] = np.zeros((1, cache.kv_heads, rows, cache.last), cache.dtype)
    guest.add(
        name,
        path,
        arrays,
        ends=here.ends,
        axes={"input_ids": {1: "new"}, "attention_mask": {1: "total"}, "position_ids": {1: "new"}},
        outputs={"logits": 1},
        caches={cache.past: cache.present for cache in model.signature.caches},
        in_place=library,
        library=library,
    )


@pytest.fixture(scope="module")
def guest(cpu: str, here: dict[str, Here], bodies: Path, tmp_path_factory: pytest.TempPathFactory) -> Guest:
    made = Guest(tmp_path_factory.mktemp(cpu))
    for cache_format, model in here.items():
        opened = DecoderModel(model.path)
        add(made, f"{cache_format}.onnx", model.path, opened, model, library=True)
        add(made, f"{cache_format}.ort", model.path.with_suffix(".ort"), opened, model, library=True)
    source = here["float32"]
    add(made, "bodies.onnx", source.path, DecoderModel(source.path, use_library=False), source, library=False)
    add(made, "bodies.ort", bodies, DecoderModel(bodies), source, library=False)
    made.run(cpu)
    return made


@pytest.mark.parametrize("suffix", [".onnx", ".ort"])
@pytest.mark.parametrize("cache_format", SHARE)
def test_logits(guest: Guest, here: dict[str, Here], cache_format: str, suffix: str) -> None:
    expected = here[cache_format]
    found = guest.result(cache_format + suffix)["logits"]
    np.testing.assert_allclose(found, expected.logits, rtol=0, atol=SHARE[cache_format] * expected.largest)


@pytest.mark.parametrize("suffix", [".onnx", ".ort"])
def test_function_bodies(guest: Guest, here: dict[str, Here], suffix: str) -> None:
    expected = here["float32"]
    found = guest.result(f"bodies{suffix}")["logits"]
    np.testing.assert_allclose(found, expected.logits, rtol=0, atol=SHARE["float32"] * expected.largest)


@pytest.mark.parametrize("suffix", [".onnx", ".ort"])
@pytest.mark.parametrize("cache_format", SHARE)
def test_tokens_of_the_cpp_program(cpu: str, here: dict[str, Here], cache_format: str, suffix: str) -> None:
    model = here[cache_format]
    # No choice so near that rounding could make another: the difference of the two best logits at every step.
    chosen = np.sort(model.logits[0, len(model.prompt) - 1 :], axis=-1)
    assert (chosen[:, -1] - chosen[:, -2]).min() > SHARE[cache_format] * model.largest
    assert len(set(model.tokens)) > NEW // 3
    outcome = arm64_runner(cpu)(model.path.with_suffix(suffix), model.prompt, NEW, "--threads", 1)
    assert outcome.tokens == model.tokens, outcome.err


def test_tokens_of_the_cpp_program_without_the_library(cpu: str, here: dict[str, Here], bodies: Path) -> None:
    model = here["float32"]
    outcome = arm64_runner(cpu)(bodies, model.prompt, 12, "--threads", 1, "--copy-caches", 1, library=False)
    assert outcome.tokens == model.tokens[:12], outcome.err


def test_an_ort_that_calls_kernels_is_refused_without_them(cpu: str, here: dict[str, Here]) -> None:
    path = here["int8"].path.with_suffix(".ort")
    outcome = arm64_runner(cpu)(path, here["int8"].prompt, 2, library=False)
    assert (outcome.code, outcome.tokens) == (2, [])
    assert "RegisterCustomOpsLibrary_V2" in outcome.err


def test_a_library_for_this_machine_is_refused(cpu: str, here: dict[str, Here]) -> None:
    runner, model = arm64_runner(cpu), here["int8"]
    outcome = runner(model.path, model.prompt, 2, "--ops", ops_library_path())
    assert outcome.code == 2
    assert f"{ops_library_path()} is built for x86_64, and this program for aarch64: name the operator" in outcome.err
