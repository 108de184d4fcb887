"""Ternary layers as codes of a few bits: exact layer by layer, and whole models equal to transformers'."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from support import bitnet_checkpoints, hf_reference
from support.bitnet_checkpoints import VARIANTS

import deltallm_onnx
from deltallm_onnx import profile
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.export import export_model, graph_cleanup, loading, ternary
from deltallm_onnx.export.quiet import quiet
from deltallm_onnx.export.source import find_model
from deltallm_onnx.export.ternary_codes import TernaryFormat, pack_ternary
from deltallm_onnx.weights.formats import WeightFormat

#: Outputs N and inputs K: odd, below, at and above whole blocks of 127 channels (and of 63 and 31).
SIZES = ((67, 300), (33, 254), (5, 3), (129, 128))
FORMATS = (TernaryFormat(2), TernaryFormat(4), TernaryFormat(2, 64), TernaryFormat(4, 32))
#: An activation x·s is off by a few float32 roundings, 2⁻²⁴ of up to 127 each; nearer than this to an edge between two
#: steps, it may fall to either side, and with it everything behind.
EDGE = 4e-5
TOLERANCE = 1e-4
EXACT = profile("exact").replace(window=3, sinks=1)


@pytest.fixture(autouse=True)
def no_compiler() -> Iterator[None]:
    """The peer's functions are compiled on first use; their meaning is the same without."""
    with torch.compiler.set_stance("force_eager"):
        yield


def random_ternary(N: int, K: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(-1, 2, (N, K))


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize(("N", "K"), SIZES)
def test_codes_are_what_matmulnbits_reads(N: int, K: int, form: TernaryFormat) -> None:
    matrix = random_ternary(N, K, seed=N)
    codes = pack_ternary(torch.from_numpy(matrix), form).numpy()
    bits = np.unpackbits(codes, axis=-1, bitorder="little").reshape(N, -1, form.block_size, form.bits)
    weights = (bits << np.arange(form.bits)).sum(-1).astype(int) - 2 ** (form.bits - 1)
    expected = np.zeros((N, weights.shape[1] * (form.block_size - 1)), int)
    expected[:, :K] = matrix
    np.testing.assert_array_equal(weights[:, :, :-1].reshape(N, -1), expected)
    np.testing.assert_array_equal(weights[:, :, -1], 0)
    assert weights.shape[1] == -(-K // (form.block_size - 1))


class Pairs(torch.nn.Module):
    """Pairs of layers of one activation, whose quantisation each pair shares."""

    def __init__(self, layers: list[ternary.TernaryLinear]) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, activations: list[torch.Tensor]) -> list[torch.Tensor]:
        return [layer(activations[number // 2]) for number, layer in enumerate(self.layers)]


def exported_layers(pairs: Pairs, channels: list[int]) -> ir.Model:
    """The graph of layers: float32 [batch, sequence, K] per pair to [batch, sequence, N] per layer."""
    dynamic = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    inputs = [torch.zeros(2, 3, K) for K in channels]
    with quiet():
        program = torch.export.export(pairs, (inputs,), dynamic_shapes=([dynamic for _ in inputs],), strict=False)
        table = ternary.translation_table()
        traced: Any = torch.onnx.export(
            program, (), opset_version=23, custom_translation_table=table, optimize=False, verbose=False
        )
    graph_cleanup.clean(traced.model)
    model: ir.Model = traced.model
    return model


def difficult_activations(K: int, seed: int) -> NDArray[np.float32]:
    """[1, 37, K]: outliers, tokens of zeros, ties between two codes, tokens below the smallest scale."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((1, 37, K)).astype(np.float32)
    x[0, 1] = 0
    x[0, 2] = random.integers(-127, 127, K) + 0.5
    x[0, 2, K // 2] = 127  # s = 1: every channel is a tie
    x[0, 3] *= 1e-7
    x[0, 4, 0] = -1e4  # all other channels are 0 or ±1, in blocks of their own
    x[0, 5, -1] = 300
    return x


def expected_layer(x: NDArray[np.float32], matrix: NDArray[np.int64], divisor: np.float32) -> NDArray[np.float32]:
    """The layer in integers."""
    largest = np.maximum(np.abs(x).max(-1, keepdims=True), np.float32(1e-5))
    scale = np.float32(1) / largest * np.float32(127)  # as torch divides a number by a tensor
    codes = np.round(x * scale).astype(np.int64)  # half to even
    assert np.abs(codes).max() == 127
    sums = (codes @ matrix.T).astype(np.float32)
    assert np.abs(sums).max() < 2**24
    return sums / (scale * divisor)


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_layers_are_exact(form: TernaryFormat, tmp_path: Path) -> None:
    # two layers read each activation, the second with two rows more
    matrices = [random_ternary(N + more, K, seed=K + more) for N, K in SIZES for more in (0, 2)]
    divisors = np.geomspace(0.0137, 231.7, len(matrices)).astype(np.float32)
    pairs = Pairs(
        [
            ternary.TernaryLinear(pack_ternary(torch.from_numpy(T), form), torch.tensor(d), form, inputs=T.shape[1])
            for T, d in zip(matrices, divisors, strict=True)
        ]
    )
    model = exported_layers(pairs, [K for _, K in SIZES])
    operators = [node.op_type for node in model.graph]
    assert operators.count("MatMulNBits") == len(matrices)
    assert operators.count("Round") == operators.count("ReduceMax") == len(SIZES)
    ir.save(model, tmp_path / "layers.onnx")
    inputs = [difficult_activations(K, seed=N) for N, K in SIZES]
    wanted = [expected_layer(inputs[i // 2], T, d) for i, (T, d) in enumerate(zip(matrices, divisors, strict=True))]
    with torch.no_grad():
        for found, expected in zip(pairs([torch.from_numpy(x) for x in inputs]), wanted, strict=True):
            np.testing.assert_array_equal(found.numpy(), expected)
    for threads in (1, 2):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(tmp_path / "layers.onnx", options, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
        for tokens in (slice(None), *(slice(t, t + 1) for t in range(7))):
            feeds = {name: x[:, tokens] for name, x in zip(names, inputs, strict=True)}
            for found, expected in zip(session.run(None, feeds), wanted, strict=True):
                np.testing.assert_array_equal(found, expected[:, tokens])


def test_a_bias_is_added() -> None:
    form, matrix = TernaryFormat(), random_ternary(6, 41, seed=1)
    codes, bias = pack_ternary(torch.from_numpy(matrix), form), torch.linspace(-2, 3, 6)
    plain, biased = (ternary.TernaryLinear(codes, torch.tensor(2.0), form, inputs=41, bias=b) for b in (None, bias))
    x = torch.from_numpy(difficult_activations(41, seed=8))
    assert torch.equal(biased(x), plain(x) + bias)


@dataclasses.dataclass(frozen=True)
class Case:
    """A checkpoint, its export with 2 bits, and what transformers computes.

    Attributes:
        variant: of the checkpoint.
        directory: of the checkpoint; the export is dense.onnx in it.
        scenarios: from transformers' own layers.
        clear: bool [B, S] for each call: tokens with no activation near an edge, in themselves and before in their row.
    """

    variant: str
    directory: Path
    scenarios: list[hf_reference.Scenario]
    clear: list[NDArray[np.bool_]]

    @property
    def dense(self) -> Path:
        return self.directory / "dense.onnx"


def make_case(directory: Path, variant: str) -> Case:
    with torch.compiler.set_stance("force_eager"):
        peer = bitnet_checkpoints.save_checkpoint(directory, variant)
        with bitnet_checkpoints.edge_distances(peer) as distances:
            scenarios = list(hf_reference.scenarios(peer, seed=5))
    steps = [(index, step) for scenario in scenarios for index, step in enumerate(scenario.steps)]
    clear: list[NDArray[np.bool_]] = []
    for (index, step), distance in zip(steps, distances, strict=True):
        own = (distance > EDGE) | ~step.real
        before = clear[-1][:, -1:] if index else np.ones((len(own), 1), bool)
        clear.append(np.logical_and.accumulate(own, axis=1) & before)
    return Case(variant, directory, scenarios, clear)


@pytest.fixture(scope="module", params=VARIANTS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    made = make_case(tmp_path_factory.mktemp("bitnet"), request.param)
    export_model(made.directory, made.dense)
    return made


@pytest.fixture(scope="module")
def divides(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """One of them, exported by whoever asks for it."""
    return make_case(tmp_path_factory.mktemp("divides"), "packed, scale divides")


def with_library(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    deltallm_onnx.register(options)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def check_parity(session: Any, case: Case) -> float:
    """Equal to 1e-4 wherever rounding cannot tip a code; a few codes off elsewhere. Returns the former's difference."""
    calls = [
        (step, logits)
        for scenario in case.scenarios
        for step, logits in zip(scenario.steps, hf_reference.run(session, scenario), strict=True)
    ]
    errors = np.concatenate([np.abs(logits - step.logits).max(-1)[step.real] for step, logits in calls])
    sure = np.concatenate([own[step.real] for (step, _), own in zip(calls, case.clear, strict=True)])
    assert sure.mean() > 0.2
    assert errors[sure].max() < TOLERANCE
    assert errors.max() < 0.2
    return float(errors[sure].max())


def ternary_nodes(path: Path) -> list[onnx.NodeProto]:
    nodes = onnx.load(path, load_external_data=False).graph.node
    return [node for node in nodes if node.op_type == "MatMulNBits"]


def bits_of(nodes: list[onnx.NodeProto]) -> set[int]:
    return {attribute.i for node in nodes for attribute in node.attribute if attribute.name == "bits"}


def test_a_model_equals_transformers(case: Case) -> None:
    check_parity(onnxruntime.InferenceSession(case.dense), case)


def test_the_graph_holds_codes_only(case: Case) -> None:
    graph = onnx.load(case.dense, load_external_data=False).graph
    nodes = ternary_nodes(case.dense)
    assert len(nodes) == 2 * 7
    assert bits_of(nodes) == {2}
    # four activations per layer are quantised: for q, k and v, for o, for gate and up, for down
    assert sum(node.op_type == "Round" for node in graph.node) == 2 * 4
    floats = {x.name: list(x.dims) for x in graph.initializer if x.data_type == onnx.TensorProto.FLOAT}
    matrices = [name for name, dims in floats.items() if len(dims) == 2 and not name.startswith("ones_")]
    assert set(matrices) <= {"model.embed_tokens.weight", "lm_head.weight_transposed"}


def test_a_rewritten_model_equals_transformers(
    case: Case, tmp_path: Path, architecture_cell: Callable[..., None]
) -> None:
    report = deltallm_onnx.rewrite(case.dense, tmp_path / "delta.onnx", EXACT)
    assert report.rewrite.rewritten == report.rewrite.layers == 2
    difference = check_parity(with_library(tmp_path / "delta.onnx"), case)
    if case.variant == "packed, scale multiplies":  # as microsoft/bitnet-b1.58-2B-4T
        architecture_cell("BitNet ternary", "transformers", difference=difference)
    check_parity(onnxruntime.InferenceSession(tmp_path / "delta.onnx"), case)


def test_no_projection_is_loaded_in_float(case: Case) -> None:
    model, notes = loading.load(find_model(case.directory, print), TernaryFormat())
    assert notes == []
    assert {name for name, x in model.named_parameters() if x.ndim == 2} <= {
        "model.embed_tokens.weight",
        "lm_head.weight",
    }
    layers = [x for x in model.modules() if isinstance(x, ternary.TernaryLinear)]
    assert all(x.weight.dtype is torch.uint8 for x in layers)
    float_model, _ = loading.load(find_model(case.directory, print))
    assert loading.count_parameters(model) == loading.count_parameters(float_model)


def test_four_bits_are_as_right(divides: Case, tmp_path: Path) -> None:
    export_model(divides.directory, tmp_path / "four.onnx", ternary_bits=4)
    assert bits_of(ternary_nodes(tmp_path / "four.onnx")) == {4}
    check_parity(onnxruntime.InferenceSession(tmp_path / "four.onnx"), divides)


@pytest.mark.parametrize("cache_format", ["int8", "int4"])
def test_packed_caches(cache_format: str, divides: Case, tmp_path: Path) -> None:
    """What `convert` makes equals the rewritten float form."""
    config = EXACT.replace(window=9, cache_format=cache_format)
    codes = deltallm_onnx.convert(divides.directory, tmp_path / "codes.onnx", config).path
    floats = tmp_path / "floats.onnx"
    dense = divides.directory / "floats.onnx"
    if not dense.exists():
        export_model(divides.directory, dense, weights=WeightFormat("float32"))
    assert bits_of(ternary_nodes(codes)) == {2}
    assert not ternary_nodes(dense)
    deltallm_onnx.rewrite(dense, floats, config)
    scenarios = divides.scenarios[:3]
    found, expected = ([hf_reference.run(with_library(path), x) for x in scenarios] for path in (codes, floats))
    real = [step.real for scenario in scenarios for step in scenario.steps]
    calls = zip(itertools.chain(*found), itertools.chain(*expected), real, strict=True)
    errors = np.concatenate([np.abs(a - b).max(-1)[own] for a, b, own in calls])
    # the rows of the caches have edges too, which no one has looked for
    assert np.median(errors) < TOLERANCE
    assert errors.max() < 0.5


def damaged(directory: Path, variant: str, name: str, value: torch.Tensor | None) -> Any:
    """A checkpoint with one tensor changed, or left out; returns the peer model."""
    peer = bitnet_checkpoints.save_checkpoint(directory, variant)
    weights = safetensors.torch.load_file(directory / "model.safetensors")
    weights[name] = weights[name] if value is None else value
    if value is None:
        del weights[name]
    safetensors.torch.save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return peer


V_PROJ = "model.layers.1.self_attn.v_proj.weight"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (V_PROJ, torch.full((9, 144), 0b01_11_00_10, dtype=torch.uint8), f"{V_PROJ} has weights that are none of"),
        (V_PROJ, torch.zeros(9, 144, dtype=torch.int8), f"{V_PROJ} holds torch.int8"),
        (V_PROJ, torch.zeros(10, 144, dtype=torch.uint8), "Cannot load the weights"),
        (f"{V_PROJ}_scale", torch.tensor([0.0]), f"scale of {V_PROJ} is \\[0.0\\]"),
        (f"{V_PROJ}_scale", torch.tensor([torch.nan]), f"scale of {V_PROJ} is \\[nan\\]"),
        (f"{V_PROJ}_scale", torch.tensor([1.0, 2.0]), f"scale of {V_PROJ} is \\[1.0, 2.0\\]"),
        (V_PROJ, None, "weight"),
    ],
)
def test_damaged_checkpoints_are_refused(name: str, value: torch.Tensor | None, words: str, tmp_path: Path) -> None:
    damaged(tmp_path, "packed, scale divides", name, value)
    with pytest.raises(DeltaLLMError, match=words):
        loading.load(find_model(tmp_path, print), TernaryFormat())


def test_a_layer_left_in_float_stays_so(tmp_path: Path) -> None:
    """A packed checkpoint may have layers whose weights are floats without a scale; activations are quantised still."""
    peer = bitnet_checkpoints.save_checkpoint(tmp_path, "packed, scale multiplies")
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    layer = peer.get_submodule(V_PROJ.removesuffix(".weight"))
    layer.weight = torch.nn.Parameter(torch.randn_like(layer.weight) / 10)
    layer.weight_scale = torch.ones(1)
    weights[V_PROJ] = layer.weight.detach()
    del weights[f"{V_PROJ}_scale"]
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, _ = loading.load(find_model(tmp_path, print), TernaryFormat())
    model.set_attn_implementation("eager")
    ids = torch.arange(9)[None] * 5
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, peer(ids).logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("variant", ["online", "packed, scale multiplies"])
def test_matrices_under_other_names_are_refused(variant: str, tmp_path: Path) -> None:
    """As in a checkpoint of the model without its head, which transformers would load all the same."""
    bitnet_checkpoints.save_checkpoint(tmp_path, variant)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    head = weights.pop("lm_head.weight", None)
    renamed = {name.removeprefix("model."): weight for name, weight in weights.items()}
    renamed |= {} if head is None else {"lm_head.weight": head}
    safetensors.torch.save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DeltaLLMError, match=r"different names for .*layers\.0"):
        loading.load(find_model(tmp_path, print), TernaryFormat())


def test_other_numbers_of_bits_are_refused(tmp_path: Path) -> None:
    bitnet_checkpoints.save_checkpoint(tmp_path / "model", "online")
    with pytest.raises(DeltaLLMError, match="3 bits"):
        export_model(tmp_path / "model", tmp_path / "dense.onnx", ternary_bits=3)
    assert not list(tmp_path.glob("*.onnx*"))
