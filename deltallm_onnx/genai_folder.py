"""Folders of onnxruntime-genai: what genai_config.json must say of a rewritten model, and what we refuse to touch."""

from __future__ import annotations

import copy
import dataclasses
import json
import platform
import shutil
from pathlib import Path
from typing import Any

import onnx_ir as ir

from deltallm_onnx.byte_text import byte_text
from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.genai_geometry import check_geometry
from deltallm_onnx.packed_sizes import PACKED_FORMATS, PackedSizes, padded_head_size
from deltallm_onnx.passes import naming
from deltallm_onnx.passes.pin_cache_shapes import fix_cache_rows
from deltallm_onnx.runtime.library import ops_library_path

GENAI_CONFIG = "genai_config.json"
#: What onnxruntime-genai's model builder calls itself in the models it writes.
PRODUCER = "onnxruntime-genai"

_LIBRARY_KEY = "custom_ops_library"
_CPU_PROVIDERS = ("cpu", "cpuexecutionprovider")
#: Sections of `model` that stand for further models beside the decoder.
_OTHER_MODELS = ("encoder", "vision", "speech", "embedding")


@dataclasses.dataclass(frozen=True)
class GenaiFolder:
    """A folder with a genai_config.json that was read and checked.

    Attributes:
        path: the genai_config.json.
        config: its content.
        model_name: file name of the decoder, in the same folder.
    """

    path: Path
    config: dict[str, Any]
    model_name: str

    @property
    def context_length(self) -> int | None:
        """Tokens that a text may have, by the configuration."""
        length = self.config["model"].get("context_length")
        return length if isinstance(length, int) and length > 0 else None


def read_genai_folder(folder: Path) -> GenaiFolder | None:
    """Read the genai_config.json of a folder; None where it has none.

    Raises:
        DeltaLLMError: where it cannot be read, describes more than one model, another provider than the CPU or buffers
            that slide, or names a library of custom operators already.
    """
    path = folder / GENAI_CONFIG
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DeltaLLMError(f"{path} cannot be read as JSON ({error}): correct it or remove it.") from error
    model = _section(config, "model", path)
    for name in _OTHER_MODELS:
        if name in model:
            raise DeltaLLMError(
                f"{path} has the section model.{name}: only models of one decoder can be rewritten, so rewrite that "
                ".onnx file by itself."
            )
    decoder = _section(model, "decoder", path, "model.")
    if "pipeline" in decoder:
        raise DeltaLLMError(f"{path} has the section model.decoder.pipeline: one .onnx file for the decoder is needed.")
    file_name = decoder.get("filename")
    if not isinstance(file_name, str):
        raise DeltaLLMError(f"{path} has a model.decoder.filename that is not a text: correct it or remove the file.")
    # A name with a folder in it would be written outside the output.
    if Path(file_name).name != file_name or file_name in ("", ".", ".."):
        raise DeltaLLMError(f"{path} names the model {file_name!r}: a file in the folder is needed.")
    _check_session_options(decoder, path)
    _check_windows(decoder, path)
    _section(config, "search", path, needed=False)
    return GenaiFolder(path, config, file_name)


def refuse_missing_config(model: ir.Model, folder: Path) -> None:
    """Refuse a model of onnxruntime-genai's builder without its configuration: no runtime could use the result.

    Raises:
        DeltaLLMError: for such a model.
    """
    if model.producer_name == PRODUCER:
        raise DeltaLLMError(
            f"{folder} holds a model of onnxruntime-genai but no {GENAI_CONFIG}: put it there, or rewrite the .onnx "
            "file by itself."
        )


def fit_genai_folder(
    genai: GenaiFolder,
    folder: Path,
    model: ir.Model,
    config: DeltaConfig,
    *,
    library: Path | None,
    context: int | None = None,
) -> tuple[str, ...]:
    """Write the configuration that a rewritten model needs, and put the operator library beside it.

    onnxruntime-genai allocates the caches itself, from the configuration and from what is fixed in the shapes of the
    graph. Caches of `int4` need more rows than tokens, so they can only have a fixed number of rows there.

    Args:
        genai: what the source's configuration says.
        folder: where genai_config.json is written, and where the side files lie already.
        model: rewritten, not yet saved; changed in place for `int4`.
        config: what it was rewritten with.
        library: the operator library to copy, None for a folder that is completed elsewhere.
        context: tokens that `int4` caches have room for, at most the configuration's context length; None leaves them
            without a fixed size.

    Returns:
        What a user should know, one sentence each.

    Raises:
        DeltaLLMError: where a file of the library's name is there already, and where the configuration tells of other
            layers or caches than the graph has.
    """
    check_geometry(genai.path, genai.config["model"]["decoder"], model, config.cache_format)
    data = copy.deepcopy(genai.config)
    decoder, search = data["model"]["decoder"], data.setdefault("search", {})
    # With a present of its own, a cache is copied row by row when it is rewound: packed ones are no rows of tokens.
    search["past_present_share_buffer"] = True
    notes = [*_fit_windows(decoder), *_fit_caches(genai, data, model, config, context)]
    if library is None:
        notes.append(library_missing(config))
    else:
        decoder.setdefault("session_options", {})[_LIBRARY_KEY] = _copy_library(library, folder)
        notes.append(
            f"onnxruntime-genai loads {library.name} from the folder; it was built for {platform.system()} on "
            f"{platform.machine()}, and --no-copy-library leaves it out."
        )
    text = json.dumps(data, indent=4, ensure_ascii=False)
    (folder / GENAI_CONFIG).write_text(text + "\n", encoding="utf-8")
    return tuple(notes)


def genai_library(*, wanted: bool, needed: bool) -> Path | None:
    """The operator library to copy; None where none is wanted, or where it is not there and not needed.

    Raises:
        DeltaLLMError: where it is needed and not built.
    """
    if not wanted:
        return None
    try:
        return ops_library_path()
    except DeltaLLMError as error:
        if not needed:
            return None
        raise DeltaLLMError(f"{error} --no-copy-library leaves it out of the folder.") from error


def _section(data: Any, name: str, path: Path, where: str = "", *, needed: bool = True) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise DeltaLLMError(f"{path} holds a {type(data).__name__}: one JSON object is needed.")
    section = data.get(name, None if needed else {})
    if not isinstance(section, dict):
        found = "no section" if section is None else f"a {type(section).__name__} as"
        raise DeltaLLMError(f"{path} has {found} {where}{name}: an object is needed; correct it or remove the file.")
    return section


def _check_session_options(decoder: dict[str, Any], path: Path) -> None:
    options = _section(decoder, "session_options", path, "model.decoder.", needed=False)
    library = options.get(_LIBRARY_KEY)
    if library is not None and "deltallm_ops" in str(library):
        raise DeltaLLMError(
            f"{path} names the {_LIBRARY_KEY} {library!r}, so the model was already rewritten by deltallm-onnx: "
            "rewrite the folder it was made from."
        )
    if library is not None:
        raise DeltaLLMError(
            f"{path} names the {_LIBRARY_KEY} {library!r} already, and onnxruntime-genai loads one: rewrite a model "
            "without custom operators."
        )
    entries = options.get("provider_options", [])
    entries = entries if isinstance(entries, list) else [entries]
    providers = [name for entry in entries for name in (entry if isinstance(entry, dict) else [str(entry)])]
    others = [name for name in providers if name.lower() not in _CPU_PROVIDERS]
    if others:
        raise DeltaLLMError(
            f"{path} runs the model on {others[0]}, and delta attention runs on the CPU: build the model with -e cpu, "
            "or remove these provider_options."
        )


def _check_windows(decoder: dict[str, Any], path: Path) -> None:
    window = _section(decoder, "sliding_window", path, "model.decoder.", needed=False)
    for name in ("slide_key_value_cache", "slide_inputs"):
        if window.get(name):
            raise DeltaLLMError(
                f"{path} sets model.decoder.sliding_window.{name}: models whose inputs or caches slide, as built for "
                "NPUs, cannot be rewritten; build the model with -e cpu."
            )


def _fit_windows(decoder: dict[str, Any]) -> list[str]:
    """Caches keep every row, and the operator hides what lies behind a window."""
    sections = [decoder]
    for name in ("cache", "kv_cache"):
        inner = sections[-1].get(name)
        sections.append(inner if isinstance(inner, dict) else {})
    windows = [section.pop("sliding_window") for section in (decoder, sections[-1]) if "sliding_window" in section]
    if not windows:
        return []
    note = (
        f"model.decoder.sliding_window was removed from {GENAI_CONFIG}: delta attention keeps the keys and values of "
        "every token, in layers with a sliding window too, and hides those behind it."
    )
    return [note]


def _fit_caches(
    genai: GenaiFolder, data: dict[str, Any], model: ir.Model, config: DeltaConfig, context: int | None
) -> list[str]:
    """Row size, and for `int4` a number of rows."""
    if config.cache_format not in PACKED_FORMATS:
        return []
    _refuse_dense_caches(model, config)
    sizes = [_row_size(node) for node in naming.delta_nodes(model)]
    data["model"]["decoder"]["head_size"] = sizes[0]
    if config.cache_format != "int4":
        return []
    if context is None:
        note = (
            "onnxruntime-genai cannot allocate int4 caches, which need more rows than tokens, unless --context TOKENS "
            "fixes their size: give it, or choose int8."
        )
        return [note]
    tokens = min(context, genai.context_length or context)
    rows = max(_rows_needed(config, size, tokens) for size in sizes)
    fix_cache_rows(model, rows)
    if tokens != genai.context_length:
        data["model"]["context_length"] = tokens
        longest = data["search"].get("max_length")
        data["search"]["max_length"] = min(longest, tokens) if isinstance(longest, int) else tokens
    heads = [node.attributes["kv_num_heads"].as_int() for node in naming.delta_nodes(model)]
    size = sum(2 * rows * count * row for count, row in zip(heads, sizes, strict=True))
    note = (
        f"int4 caches have a fixed size in onnxruntime-genai: {rows} rows for {tokens} tokens, {byte_text(size)} per "
        "sequence; --context TOKENS chooses fewer."
    )
    return [note]


def _refuse_dense_caches(model: ir.Model, config: DeltaConfig) -> None:
    """One head_size, and one number of rows, stand for all layers but those whose own shapes say otherwise."""
    packed = {
        past for node in naming.delta_nodes(model) for past in node.inputs[naming.PAST_KEY : naming.PAST_VALUE + 1]
    }
    for value in model.graph.inputs:
        if value in packed or value.shape is None or len(value.shape) != 4:
            continue
        if config.cache_format == "int4" or not isinstance(value.shape[3], int):
            raise DeltaLLMError(
                f"{value.name} belongs to a layer that stays dense, for which onnxruntime-genai would allocate a cache "
                f"of the size that {config.cache_format} needs: choose float32 or float16, or rewrite every layer."
            )


def _row_size(node: ir.Node) -> int:
    past = node.inputs[naming.PAST_KEY]
    size = None if past is None or past.shape is None else past.shape[3]
    if not isinstance(size, int):
        raise DeltaLLMError(f"Layer {node.name!r} has a cache of unknown row size: give its past a shape.")
    return size


def _rows_needed(config: DeltaConfig, row_size: int, tokens: int) -> int:
    head_size = padded_head_size(config.cache_format, row_size)
    if head_size is None:
        raise ValueError(f"No {config.cache_format} cache has rows of {row_size} bytes.")
    return PackedSizes(config.cache_format, head_size, config.sinks, config.window).rows_needed(tokens)


def _copy_library(library: Path, folder: Path) -> str:
    """A copy: onnxruntime-genai loads nothing that resolves to a place outside the model's folder."""
    target = folder / library.name
    if target.exists():
        raise DeltaLLMError(f"The model's folder has a file {library.name} already: remove it there.")
    shutil.copyfile(library.resolve(), target)
    target.chmod(0o755)
    return target.name


def library_missing(config: DeltaConfig) -> str:
    """What onnxruntime-genai does with a rewritten model without the operator library, one sentence."""
    what = (
        "cannot run the model"
        if config.cache_format in PACKED_FORMATS
        else "runs the slow fallback functions of the model"
    )
    return (
        f"onnxruntime-genai {what} until the operator library lies beside it and {GENAI_CONFIG} names it as "
        f"model.decoder.session_options.{_LIBRARY_KEY}."
    )
