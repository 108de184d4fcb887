"""The model of a package and what lies beside it: weights, tokenizer, configurations."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx

from deltallm_onnx.attention_plan import AttentionPlan
from deltallm_onnx.calibration.plan_file import read_calibration
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.external_data import check_external_data
from deltallm_onnx.genai_folder import GENAI_CONFIG
from deltallm_onnx.model_folder import calibration_path
from deltallm_onnx.package.checksums import SHA256SUMS
from deltallm_onnx.package.licences import LICENCES
from deltallm_onnx.package.private_paths import clear_graph, without_paths, write_clean_json
from deltallm_onnx.package.programs import ONNXRUNTIME, RUNNER
from deltallm_onnx.package.request import PackageRequest
from deltallm_onnx.package.sources import SOURCES
from deltallm_onnx.package.targets import Target
from deltallm_onnx.runtime.model_file import ORT_SUFFIX, read_model_file
from deltallm_onnx.runtime.side_files import read_json
from deltallm_onnx.runtime.signature import DecoderSignature, read_signature

#: Copied byte by byte: a vocabulary may have a token that looks like a path.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja")
#: Configurations, which may name folders of the machine they were made on.
_CONFIGS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
)
#: What `calibrate` writes.
_CALIBRATION = "deltallm.json"
_LIBRARY_KEY = "custom_ops_library"
#: The page that says how to load a package.
README = "README.md"
#: First names of what else a package has, so that no file of weights may be called so.
_OTHERS = {*_TOKENIZER_FILES, *_CONFIGS, _CALIBRATION, GENAI_CONFIG, README, SHA256SUMS, RUNNER, ONNXRUNTIME}
_OTHERS |= {SOURCES, LICENCES}


@dataclasses.dataclass(frozen=True)
class ModelSet:
    """A model that was read and found fit for a target.

    Attributes:
        path: the .onnx file.
        proto: its graph; weights in external files are not loaded.
        data_files: these files.
        signature: inputs, outputs and caches, as the operator library runs them.
    """

    path: Path
    proto: onnx.ModelProto
    data_files: tuple[Path, ...]
    signature: DecoderSignature

    @property
    def folder(self) -> Path:
        """Where everything lies."""
        return self.path.parent

    @property
    def size(self) -> int:
        """Bytes of the model, its weights included."""
        return sum(path.stat().st_size for path in (self.path, *self.data_files))

    @property
    def cache_formats(self) -> tuple[str, ...]:
        """Of its caches, by name."""
        caches = self.signature.caches
        return tuple(sorted({str(c.dtype) if c.packed is None else c.packed.cache_format for c in caches}))

    @property
    def vocabulary(self) -> int | None:
        """Size of the last axis of the logits; None where neither the graph nor config.json says."""
        for output in self.proto.graph.output:
            dims = output.type.tensor_type.shape.dim
            if output.name == "logits" and dims and dims[-1].dim_value > 0:
                return int(dims[-1].dim_value)
        size = read_json(self.folder / "config.json").get("vocab_size")
        return size if isinstance(size, int) and size > 0 else None


def read_model(request: PackageRequest, target: Target) -> ModelSet:
    """Read the model of a request.

    Raises:
        DeltaLLMError: for a file that is no rewritten decoder, and for one that the target's runtime cannot feed.
    """
    path = request.model
    if path.suffix == ORT_SUFFIX:
        raise DeltaLLMError(f"{path} is an .ort already: name the .onnx it was made from, and give --format ort.")
    proto = read_model_file(path)
    signature = read_signature(proto, str(path), use_library=True)
    if not signature.delta_nodes:
        raise DeltaLLMError(
            f"{path} has no delta attention: name a model that 'deltallm-onnx convert' or 'rewrite' wrote."
        )
    data_files = tuple(check_external_data(proto, path.resolve().parent))
    model = ModelSet(path, proto, data_files, signature)
    ort_files = (f"{path.stem}{ORT_SUFFIX}", f"{path.stem}.required_operators.config")
    taken = {*_OTHERS, target.library, *ort_files, calibration_path(path).name}
    for file in (path.resolve(), *data_files):
        name = file.relative_to(path.resolve().parent).parts[0]
        if name in taken:
            raise DeltaLLMError(f"{path} keeps weights in {name}, a name that a package needs for itself: rename both.")
    if target.system == "ios" and any(cache.dtype == np.float16 for cache in signature.caches):
        raise DeltaLLMError(
            f"{path} has float16 caches, and ONNX Runtime's Objective-C and Swift API has no such tensors "
            "(ORTTensorElementDataType has no Float16): convert it with --cache-format int8, int4 or float32."
        )
    return model


def copy_model(model: ModelSet, folder: Path, own_folders: tuple[str, ...]) -> tuple[str, ...]:
    """Copy the .onnx and its weights; notes on what was left out."""
    for source in model.data_files:
        copy = folder / source.relative_to(model.path.resolve().parent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    target = folder / model.path.name
    if clear_graph(model.proto, own_folders):
        target.write_bytes(model.proto.SerializeToString())
        return (f"Notes in {target.name} that named folders of this machine were removed.",)
    shutil.copyfile(model.path, target)
    return ()


def copy_side_files(model: ModelSet, folder: Path) -> tuple[str, ...]:
    """Copy tokenizer, configurations and calibration; notes on what was changed."""
    for path in _plain_files(model, _TOKENIZER_FILES):
        shutil.copyfile(path, folder / path.name)
    configs = (*_CONFIGS, *_calibration(model))
    cleaned = [path.name for path in _plain_files(model, configs) if write_clean_json(path, folder / path.name)]
    if not cleaned:
        return ()
    return (f"Paths of this machine in {' and '.join(cleaned)} were cut to their last names.",)


def _plain_files(model: ModelSet, names: Iterable[str]) -> Iterator[Path]:
    """Those of these files that lie beside the model."""
    for name in names:
        path = model.folder / name
        if path.is_symlink():
            # Whoever made the folder could send any file of this machine along.
            raise DeltaLLMError(f"{path} is a symbolic link: replace it by the file itself; links are not followed.")
        if path.is_file():
            yield path


def _calibration(model: ModelSet) -> tuple[str, ...]:
    """The calibration that gave the model its thresholds, if it lies beside it."""
    own = calibration_path(model.path).name
    plan = next((entry.value for entry in model.proto.metadata_props if entry.key == "deltallm.plan"), None)
    if any(_plain_files(model, [own])) or plan is None:
        return (own,)
    # A file of the usual name may be another model's.
    for path in _plain_files(model, [_CALIBRATION]):
        if f'"{AttentionPlan.from_dict(read_calibration(path), str(path)).sha256}"' in plan:
            return (path.name,)
    return ()


def copy_genai_config(model: ModelSet, folder: Path, request: PackageRequest, target: Target) -> tuple[str, ...]:
    """Copy genai_config.json, if it is this model's, so that it names the package's library.

    Returns:
        Notes.
    """
    for source in _plain_files(model, [GENAI_CONFIG]):
        if target.system == "ios":
            return (f"{GENAI_CONFIG} was left out: onnxruntime-genai loads operator libraries as files, iOS does not.",)
        if not request.writes_onnx:
            return (f"{GENAI_CONFIG} was left out: it names {model.path.name}, which is not in the package.",)
        return _write_genai_config(model, source, folder, target.library)
    return ()


def _write_genai_config(model: ModelSet, source: Path, folder: Path, library: str) -> tuple[str, ...]:
    data = read_json(source)
    section = data.get("model")
    decoder = section.get("decoder") if isinstance(section, dict) else None
    named = decoder.get("filename") if isinstance(decoder, dict) else None
    if not isinstance(decoder, dict) or named != model.path.name:
        return (f"{GENAI_CONFIG} was left out: it names {named or 'no model'}, not {model.path.name}.",)
    options = decoder.setdefault("session_options", {})
    if not isinstance(options, dict):
        raise DeltaLLMError(f"{source} has session_options that are no object: correct it or remove the file.")
    options[_LIBRARY_KEY] = library
    text = json.dumps(without_paths(data), indent=4, ensure_ascii=False) + "\n"
    (folder / GENAI_CONFIG).write_text(text, encoding="utf-8")
    return ()
