"""Writing an .ort: what ONNX Runtime's own converter writes, a configuration without paths, and refusals."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
from onnxruntime.tools.ort_format_model import create_config_from_models
from onnxruntime.tools.reduced_build_config_parser import parse_config
from support.command_line import files_below
from support.ort_models import to_ort
from support.tiny_decoder import VOCABULARY, tiny_decoder

from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.convert import ConvertReport, rewrite
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.ort_format import OrtForm, OrtPlatform, write_ort
from deltallm_onnx.ort_format import write as writing
from deltallm_onnx.ort_format.conversion import in_ort_format
from deltallm_onnx.runtime import DecoderModel, generate, ops_library_path
from deltallm_onnx.runtime.ort_file import read_ort_file

Rewritten = Callable[[str], Path]
Frozen = Callable[[str, OrtForm], Path]


@pytest.mark.parametrize(
    ("name", "form", "platform"),
    [("int4", "operator", None), ("float32", "fallback", "arm"), ("float16", "operator", "amd64")],
)
def test_the_file_is_that_of_the_converter(
    rewritten: Rewritten, tmp_path: Path, name: str, form: OrtForm, platform: OrtPlatform | None
) -> None:
    source = tmp_path / "peer.onnx"
    source.write_bytes(rewritten(name).read_bytes())
    peer = to_ort(source, ops_library_path() if form == "operator" else None, platform)
    found = write_ort(source, tmp_path / "ours.ort", form=form, platform=platform).model
    # Lists whose order ONNX Runtime leaves open make two runs of the converter differ too.
    assert found.stat().st_size == peer.stat().st_size
    models = [read_ort_file(path) for path in (found, peer)]
    assert models[0].graph == models[1].graph
    for entries in ("opset_import", "metadata_props"):
        first, second = (sorted(map(str, getattr(model, entries))) for model in models)
        assert first == second
    assert all(tensor.raw_data for tensor in models[0].graph.initializer), "the weights are to be compared"


@pytest.mark.parametrize(("name", "form"), [("int8", "operator"), ("float32", "fallback")])
def test_required_operators(rewritten: Rewritten, tmp_path: Path, name: str, form: OrtForm) -> None:
    files = write_ort(rewritten(name), tmp_path / "small.model.ort", form=form)
    assert files.required_operators == tmp_path / "small.model.required_operators.config"
    assert {path.name for path in tmp_path.iterdir()} == {files.model.name, files.required_operators.name}
    text = files.required_operators.read_text()
    assert str(tmp_path) not in text
    assert "/" not in text
    found, types = parse_config(str(files.required_operators))
    assert types is None
    peer = tmp_path / "peer.config"
    create_config_from_models([files.model], peer, enable_type_reduction=False)
    expected, _ = parse_config(str(peer))
    ours = expected.pop("ai.deltallm", {})
    assert found == expected
    assert found["ai.onnx"]
    # An operator of the library is no part of ONNX Runtime, and what builds that must not look for it.
    assert (ours == {1: {"DeltaAttention"}}) == (form == "operator")
    assert ("# DeltaAttention: from the operator library" in text) == (form == "operator")


def test_weights_in_a_file_of_their_own_are_taken_in(rewritten: Rewritten, tmp_path: Path) -> None:
    folder = tmp_path / "moved"
    folder.mkdir()
    model = onnx.load(rewritten("int8"))
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    path = write_ort(folder / "model.onnx", tmp_path / "model.ort").model
    (folder / "model.onnx.data").unlink()
    found, expected = (generate(DecoderModel(p), [5, 3, 1], max_new_tokens=40) for p in (path, rewritten("int8")))
    assert found.tokens == expected.tokens


def test_it_is_replaced_as_a_whole(rewritten: Rewritten, tmp_path: Path) -> None:
    first = write_ort(rewritten("int8"), tmp_path / "model.ort")
    content = first.model.read_bytes(), first.required_operators.read_text()
    write_ort(rewritten("float32"), tmp_path / "model.ort", form="fallback")
    assert first.model.read_bytes() != content[0]
    assert first.required_operators.read_text() != content[1]
    assert len(files_below(tmp_path)) == 2


@dataclasses.dataclass(frozen=True)
class Calibration:
    """As much of a calibration's result as lies beside a model."""

    notes: list[str]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.notes))


def test_nothing_tells_of_the_folder_that_files_grow_in(dense_path: Path, tmp_path: Path) -> None:
    lines: list[str] = []

    def action(model: Path, out: Path, config: DeltaConfig, progress: Callable[[str], None]) -> ConvertReport:
        progress(f"Writing {out}")
        report = rewrite(model, out, config)
        found = Calibration([f"measure it with 'deltallm-onnx eval {out}'."])
        found.save(out.with_name("model.deltallm.json"))
        return dataclasses.replace(report, notes=(f"{out} is small.",), calibration=found)

    out = tmp_path / "model.ort"
    write = in_ort_format(action, form="operator", platform=None)
    report = write(dense_path, out, DeltaConfig(cache_format="int4"), progress=lines.append)
    saved = tmp_path / "model.deltallm.json"
    assert {path.name for path in report.files} == {path.name for path in tmp_path.iterdir()}
    assert saved in report.files
    assert json.loads(saved.read_text()) == [f"measure it with 'deltallm-onnx eval {out.with_suffix('.onnx')}'."]
    assert report.calibration is not None
    assert report.calibration.notes == json.loads(saved.read_text())
    assert report.notes[0] == f"{out} is small."
    assert lines == [f"Writing {out}", f"Writing {out} in ONNX Runtime's format"]


# Refusals.


def refused(rewritten: Path, folder: Path, *parts: object, target: str = "model.ort", **options: object) -> None:
    before = files_below(folder)
    with pytest.raises(DeltaLLMError) as refusal:
        write_ort(rewritten, folder / target, **options)
    for part in parts:
        assert str(part) in str(refusal.value)
    assert files_below(folder) == before


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_packed_caches_have_no_bodies(rewritten: Rewritten, tmp_path: Path, name: str) -> None:
    refused(rewritten(name), tmp_path, rewritten(name), "DeltaAttention", "float32 or float16", form="fallback")


def test_more_than_the_format_holds(rewritten: Rewritten, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "model.onnx"
    model = onnx.load(rewritten("int8"))
    onnx.save(model, source, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    graph, weights = source.stat().st_size, (tmp_path / "model.onnx.data").stat().st_size
    assert weights > graph, "the weights are to be what is too large"
    monkeypatch.setattr(writing, "LARGEST_MODEL", weights)
    sentence = (source, "kB with its weights", "keep the .onnx", "--weights")
    with monkeypatch.context() as patch:
        patch.setattr(ort, "InferenceSession", None)  # it is refused before the model is opened
        refused(source, tmp_path, *sentence)
    # And what only the conversion makes too large.
    monkeypatch.setattr(writing, "_size", lambda _: 1)
    refused(source, tmp_path, *sentence)


def test_a_library_that_is_not_there(rewritten: Rewritten, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, missing = ops_library_path(), tmp_path / "libdeltallm_ops.so"
    refused(rewritten("int8"), tmp_path, f"There is no operator library {missing}", library=missing)
    monkeypatch.setenv("DELTALLM_OPS_LIBRARY", str(missing))
    refused(rewritten("int8"), tmp_path, f"DELTALLM_OPS_LIBRARY names {missing}")
    write_ort(rewritten("int8"), tmp_path / "model.ort", library=library)


def test_a_library_that_is_none(rewritten: Rewritten, tmp_path: Path) -> None:
    library = tmp_path / "libdeltallm_ops.so"
    library.write_bytes(b"\x7fELF and no more")
    refused(rewritten("int8"), tmp_path, "cannot load", library, library=library)


def test_wrong_targets_and_choices(rewritten: Rewritten, frozen: Frozen, tmp_path: Path) -> None:
    source = rewritten("int8")
    refused(source, tmp_path, "model.onnx does not end in .ort", target="model.onnx")
    refused(source, tmp_path, "does not exist", target="missing/model.ort")
    refused(source, tmp_path, "form", "'kernel'", "operator, fallback", form="kernel")
    refused(source, tmp_path, "platform", "'arm64'", "arm, amd64", platform="arm64")
    refused(tmp_path / "missing.onnx", tmp_path, "no file")
    refused(frozen("int8", "operator"), tmp_path, "ONNX Runtime's own format", "give the .onnx it was made from")


def test_a_model_that_onnxruntime_refuses(tmp_path: Path) -> None:
    model = tiny_decoder()
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = VOCABULARY + 1
    onnx.save(model, tmp_path / "wrong.onnx")
    model.graph.node[-1].op_type = "MatMull"
    onnx.save(model, tmp_path / "wrong.onnx")
    refused(tmp_path / "wrong.onnx", tmp_path, "wrong.onnx", "MatMull")
