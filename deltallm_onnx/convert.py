"""`convert` and `rewrite`: files in, files out, all or nothing."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir

from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.dense_model import DenseModel, open_dense_model, quiet, refuse_external_attributes
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.export.output import check_writable, staged
from deltallm_onnx.model_folder import (
    GENAI_CONFIG,
    check_new_folder,
    copy_side_files,
    find_model,
    set_genai_cache_row,
)
from deltallm_onnx.packed_sizes import PACKED_FORMATS
from deltallm_onnx.passes import RewriteReport, naming, rewrite_model

# The library is not put there by us: the folder may be meant for a machine of another kind.
_GENAI_NOTE = (
    "onnxruntime-genai runs the slow fallback until the operator library lies beside the model and genai_config.json "
    "names it as model.decoder.session_options.custom_ops_library."
)

_GENAI_NOTES = {
    "int8": "onnxruntime-genai needs the operator library beside the model, named in genai_config.json as "
    "model.decoder.session_options.custom_ops_library.",
    "int4": "onnxruntime-genai cannot allocate int4 caches, which need more rows than tokens: choose int8 for it.",
}

#: Receives one line per step.
Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class ConvertReport:
    """What `convert` or `rewrite` wrote.

    Attributes:
        path: the rewritten .onnx file.
        files: every file written, `path` included.
        config: what was written into it.
        rewrite: what the passes did.
        notes: what a user should know, one sentence each.
        bytes_written: size of all files together.
        seconds: wall time.
    """

    path: Path
    files: tuple[Path, ...]
    config: DeltaConfig
    rewrite: RewriteReport
    notes: tuple[str, ...]
    bytes_written: int
    seconds: float

    @classmethod
    def of(
        cls, files: list[Path], config: DeltaConfig, report: RewriteReport, *, notes: tuple[str, ...] = (), begin: float
    ) -> ConvertReport:
        """The report on files that are in place, the .onnx file first; `begin` is from time.perf_counter."""
        size = sum(file.stat().st_size for file in files)
        if any(file.name == GENAI_CONFIG for file in files):
            notes = (*notes, _GENAI_NOTES.get(config.cache_format, _GENAI_NOTE))
        return cls(files[0], tuple(files), config, report, notes, size, time.perf_counter() - begin)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {
            "path": str(self.path),
            "files": [str(file) for file in self.files],
            "config": self.config.to_dict(),
            "rewrite": self.rewrite.to_dict(),
            "notes": list(self.notes),
            "bytes_written": self.bytes_written,
            "seconds": round(self.seconds, 3),
        }

    def __str__(self) -> str:
        size = f"{len(self.files)} files, {self.bytes_written / 1e6:.1f} MB, {self.seconds:.1f} s"
        return "\n".join([*self.rewrite.lines, *self.notes, f"wrote {self.path} ({size})"])


@dataclasses.dataclass(frozen=True)
class _Options:
    """What `rewrite_model` takes beside the model."""

    config: DeltaConfig
    unfused: bool
    statistics: bool
    allow_partial: bool

    def apply(self, dense: DenseModel) -> RewriteReport:
        with quiet():
            return rewrite_model(
                dense.model,
                self.config,
                unfused=self.unfused,
                statistics=self.statistics,
                allow_partial=self.allow_partial,
                source_sha256=dense.sha256,
            )


def rewrite(
    in_path: str | Path,
    out_path: str | Path,
    config: DeltaConfig,
    *,
    unfused: bool = False,
    statistics: bool = True,
    allow_partial: bool = False,
    progress: Progress | None = None,
) -> ConvertReport:
    """Rewrite the attention of a dense ONNX model.

    Args:
        in_path: an .onnx file, or a folder with one (the file genai_config.json names, or the only one).
        out_path: the .onnx file to write, which may replace one; for a folder, a new folder, which also gets every
            other file of the old one. Weights go to `<name>.data` if the model kept them outside the .onnx file.
        config: the settings of delta attention.
        unfused: write DeltaThreshold and HybridWindowAttention instead of DeltaAttention.
        statistics: add an output `statistics.N` per layer, from which `run` prints the counters.
        allow_partial: leave layers that are not understood dense instead of refusing the model.
        progress: receives one line per step.

    Raises:
        DeltaLLMError: for a model that cannot be read or rewritten and a path that cannot be written; nothing is
            written then.
    """
    in_path, out_path, say = Path(in_path), Path(out_path), progress or _silent
    options = _Options(config, unfused, statistics, allow_partial)
    if in_path.is_dir():
        return _rewrite_folder(in_path, out_path, options, say)
    begin = time.perf_counter()
    check_writable(out_path)
    say(f"Reading {in_path}")
    dense = open_dense_model(in_path)
    _refuse_overwriting(dense, out_path)
    say(f"Rewriting {in_path}")
    report = options.apply(dense)
    say(f"Writing {out_path}")
    with staged(out_path) as folder:
        _save(dense, folder / out_path.name)
        names = _listing(folder, out_path.name)
    return ConvertReport.of([out_path.parent / name for name in names], config, report, begin=begin)


def convert(
    model: str | Path,
    out_path: str | Path,
    config: DeltaConfig,
    *,
    unfused: bool = False,
    statistics: bool = True,
    allow_partial: bool = False,
    progress: Progress | None = None,
) -> ConvertReport:
    """Trace a Hugging Face causal language model and rewrite its attention.

    Beside the .onnx file come its weights, `<name>.data`, the tokenizer, the configurations and genai_config.json. The
    operator library is not needed for this.

    Args:
        model: a model directory, or a hub id such as "owner/name".
        out_path: the .onnx file to write; files of the same names in its folder are replaced.
        config: as for `rewrite`, and so are the other arguments.
        unfused: see `rewrite`.
        statistics: see `rewrite`.
        allow_partial: see `rewrite`.
        progress: see `rewrite`.

    Raises:
        DeltaLLMError: for a model that cannot be read, traced or rewritten, a path that cannot be written, and where
            torch or transformers are not installed; nothing is written then.
    """
    from deltallm_onnx.export import export_model  # noqa: PLC0415 - `rewrite` needs no torch

    begin, out_path, say = time.perf_counter(), Path(out_path), progress or _silent
    options = _Options(config, unfused, statistics, allow_partial)
    check_writable(out_path)
    with staged(out_path) as folder:
        # What the user is told is where the files will be, not where they grow.
        exported = export_model(
            model, folder / out_path.name, progress=lambda line: say(line.replace(str(folder), str(out_path.parent)))
        )
        dense = open_dense_model(exported.path)
        say("Rewriting")
        report = options.apply(dense)
        # The dense model's weights become the rewritten model's where they lie: the new file refers to the old data.
        rewritten = folder / f"{out_path.name}.rewritten"
        ir.save(dense.model, rewritten, format="protobuf")
        rewritten.replace(exported.path)
        _fit_genai_config(dense, folder, config)
        names = _listing(folder, out_path.name)
    files = [out_path.parent / name for name in names]
    size, peak = 4 * exported.parameters / 1e9, exported.peak_rss_bytes / 1e9
    memory = f"peak memory of the export: {peak:.2f} GB for {size:.2f} GB of float32 weights"
    return ConvertReport.of(files, config, report, notes=(memory, *exported.notes), begin=begin)


def _rewrite_folder(source: Path, out: Path, options: _Options, say: Progress) -> ConvertReport:
    begin = time.perf_counter()
    in_path = find_model(source)
    check_new_folder(out)
    if source.resolve() in (out.resolve(), *out.resolve().parents):
        raise DeltaLLMError(f"The output folder {out} lies inside the model's folder {source}: give another one.")
    check_writable(out.parent / f"{out.name}.partial")
    say(f"Reading {in_path}")
    dense = open_dense_model(in_path)
    say(f"Rewriting {in_path}")
    report = options.apply(dense)
    say(f"Writing {out}")
    with staged(out) as staging:
        folder = staging / out.name
        folder.mkdir()
        replaced = {in_path}
        if len(list(source.rglob("*.onnx"))) == 1:
            # With other models in the folder, the data files may be theirs too.
            replaced |= {source / file.relative_to(source.resolve()) for file in dense.data_files}
        copy_side_files(source, folder, leave_out=replaced)
        _save(dense, folder / in_path.name)
        _fit_genai_config(dense, folder, options.config)
        names = _listing(folder, in_path.name)
        if out.is_dir():
            out.rmdir()
    return ConvertReport.of([out / name for name in names], options.config, report, begin=begin)


def _listing(folder: Path, first: str) -> list[Path]:
    """All files below a folder, relative to it, the named one first."""
    names = sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    return sorted(names, key=lambda name: name != Path(first))


def _fit_genai_config(dense: DenseModel, folder: Path, config: DeltaConfig) -> None:
    """onnxruntime-genai allocates the caches itself, as wide as the head size it is told."""
    if config.cache_format in PACKED_FORMATS:
        past = naming.delta_nodes(dense.model)[0].inputs[naming.PAST_KEY]
        if past is not None and past.shape is not None and isinstance(past.shape[3], int):
            set_genai_cache_row(folder, past.shape[3])


def _refuse_overwriting(dense: DenseModel, out_path: Path) -> None:
    """Refuse to write over the source: a failure later would cost the user the model."""
    written = {out_path.resolve(), _data_path(out_path).resolve()}
    for source in (dense.path, *dense.data_files):
        if source.resolve() in written:
            raise DeltaLLMError(f"Writing {out_path} would replace {source}, which is read: give another output path.")


def _data_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.data")


def _save(dense: DenseModel, path: Path) -> None:
    """Write a model whose weights come from another folder, tensor by tensor."""
    if not dense.data_files:
        ir.save(dense.model, path, format="protobuf")
        return
    refuse_external_attributes(dense)
    try:
        ir.save(dense.model, path, format="protobuf", external_data=_data_path(path).name, max_workers=1)
    except ValueError as error:
        # onnx_ir refuses data files with several hard links when it opens them.
        reason = " ".join(str(error).split())
        raise DeltaLLMError(f"The weights of {dense.path} cannot be read ({reason}): copy the model first.") from error


def _silent(_: str) -> None:
    """Progress that nobody wants to see."""
