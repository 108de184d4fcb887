"""`convert` and `rewrite`: files in, files out, all or nothing."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from deltallm_onnx.attention_plan import AttentionPlan
from deltallm_onnx.byte_text import byte_text
from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.dense_model import DenseModel, open_dense_model, quiet, refuse_external_attributes
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.export.output import check_model_path, check_writable, staged
from deltallm_onnx.genai_folder import (
    GENAI_CONFIG,
    GenaiFolder,
    fit_genai_folder,
    genai_library,
    read_genai_folder,
    refuse_missing_config,
)
from deltallm_onnx.genai_warnings import genai_warnings
from deltallm_onnx.model_folder import (
    calibration_path,
    check_new_folder,
    copy_side_files,
    find_model,
    renamed_in_config,
)
from deltallm_onnx.passes import RewriteReport, rewrite_model
from deltallm_onnx.preflight import check_disk
from deltallm_onnx.source_config import read_source_config
from deltallm_onnx.staged_export import staged_export
from deltallm_onnx.weights.formats import WeightFormat
from deltallm_onnx.weights.notes import weight_notes
from deltallm_onnx.weights.report import WeightsReport
from deltallm_onnx.weights.store import refuse_quantised, store_weights

if TYPE_CHECKING:  # a rewrite opens no session, and needs no ONNX Runtime
    from deltallm_onnx.calibration.default import Calibrator
    from deltallm_onnx.calibration.plan_file import PlanOrigin
    from deltallm_onnx.calibration.result import Calibration

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
        weights: what became of the weights; None where they are as they were.
        notes: what a user should know, one sentence each.
        bytes_written: size of all files together.
        seconds: wall time.
        calibration: what the thresholds were found by; None where they were given.
    """

    path: Path
    files: tuple[Path, ...]
    config: DeltaConfig
    rewrite: RewriteReport
    weights: WeightsReport | None
    notes: tuple[str, ...]
    bytes_written: int
    seconds: float
    calibration: Calibration | None = None

    @classmethod
    def of(
        cls,
        files: list[Path],
        config: DeltaConfig,
        report: RewriteReport,
        *,
        weights: WeightsReport | None = None,
        notes: tuple[str, ...] = (),
        begin: float,
        calibration: Calibration | None = None,
    ) -> ConvertReport:
        """The report on files that are in place, the .onnx file first; `begin` is from time.perf_counter."""
        size = sum(file.stat().st_size for file in files)
        notes = (*notes, *weight_notes(weights, cost_told=calibration is not None))
        seconds = time.perf_counter() - begin
        return cls(files[0], tuple(files), config, report, weights, notes, size, seconds, calibration)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {
            "path": str(self.path),
            "files": [str(file) for file in self.files],
            "config": self.config.to_dict(),
            "rewrite": self.rewrite.to_dict(),
            "weights": None if self.weights is None else self.weights.to_dict(),
            "notes": list(self.notes),
            "bytes_written": self.bytes_written,
            "seconds": round(self.seconds, 3),
            "calibration": None if self.calibration is None else self.calibration.summary(),
        }

    def __str__(self) -> str:
        size = f"{len(self.files)} files, {byte_text(self.bytes_written)}, {self.seconds:.1f} s"
        weights = () if self.weights is None else self.weights.lines
        calibrated = () if self.calibration is None else self.calibration.lines
        lines = [*self.rewrite.lines, *weights, *calibrated, *self.notes, f"wrote {self.path} ({size})"]
        if self.calibration is not None:
            lines.append(f"wrote {calibration_path(self.path)}: the thresholds and how they were found")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class _Options:
    """What `rewrite_model` takes beside the model."""

    config: DeltaConfig
    unfused: bool
    statistics: bool | None
    allow_partial: bool
    copy_library: bool
    context: int | None
    weights: WeightFormat | None
    plan: AttentionPlan | None
    origin: PlanOrigin | None

    def notes(self, dense: DenseModel) -> tuple[str, ...]:
        """What to say of the plan, before the model is changed."""
        return () if self.origin is None else self.origin.notes(dense.model)

    def store_weights(self, dense: DenseModel) -> Callable[[], WeightsReport | None]:
        """Change the storage of the weights; what comes back makes the report, once they are written."""
        if self.weights is None or self.weights.name == "float32":
            return lambda: None
        return store_weights(dense.model, self.weights, str(dense.path))

    def apply(self, dense: DenseModel) -> RewriteReport:
        with quiet():
            return rewrite_model(
                dense.model,
                self.config,
                plan=self.plan,
                unfused=self.unfused,
                statistics=self.statistics is not False,
                allow_partial=self.allow_partial,
                source_sha256=dense.sha256,
                expected=read_source_config(dense.path.parent),
            )


def rewrite(
    in_path: str | Path,
    out_path: str | Path,
    config: DeltaConfig,
    *,
    plan: AttentionPlan | None = None,
    origin: PlanOrigin | None = None,
    unfused: bool = False,
    statistics: bool | None = None,
    allow_partial: bool = False,
    copy_library: bool = True,
    context: int | None = None,
    weights: WeightFormat | None = None,
    progress: Progress | None = None,
) -> ConvertReport:
    """Rewrite the attention of a dense ONNX model.

    Args:
        in_path: an .onnx file, or a folder with one (the file genai_config.json names, or the only one).
        out_path: the .onnx file to write, which may replace one; for a folder, a new folder, which also gets every
            other file of the old one. Weights go to `<name>.data` if the model kept them outside the .onnx file.
        config: the settings of delta attention.
        plan: threshold, row weights, granularity, row_rule and v_skip per layer, instead of the config's.
        origin: the model that the plan was found for; a note says where it is another one.
        unfused: write DeltaThreshold and HybridWindowAttention instead of DeltaAttention.
        statistics: add an output `statistics.N` per layer, from which `run` prints the counters. None adds them but
            for folders of onnxruntime-genai, which would fetch them in every step.
        allow_partial: leave layers that are not understood dense instead of refusing the model.
        copy_library: in a folder of onnxruntime-genai, put the operator library beside the model and name it in
            genai_config.json; False is for a folder that another kind of machine will use.
        context: tokens that `int4` caches have room for in onnxruntime-genai; None is the model's context length.
        weights: how to store the weight matrices of a float32 model; None leaves them as they are.
        progress: receives one line per step.

    Raises:
        DeltaLLMError: for a model that cannot be read or rewritten and a path that cannot be written; nothing is
            written then.
    """
    in_path, out_path, say = Path(in_path), Path(out_path), progress or _silent
    options = _Options(config, unfused, statistics, allow_partial, copy_library, context, weights, plan, origin)
    if in_path.is_dir():
        return _rewrite_folder(in_path, out_path, options, say)
    begin = time.perf_counter()
    check_model_path(out_path)
    say(f"Reading {in_path}")
    dense = open_dense_model(in_path)
    _refuse_overwriting(dense, out_path)
    if weights is not None:
        refuse_quantised(dense.model, str(in_path))
    say(f"Rewriting {in_path}")
    notes = options.notes(dense)
    report = options.apply(dense)
    stored = options.store_weights(dense)
    _check_room(dense, out_path.parent)
    say(f"Writing {out_path}")
    with staged(out_path) as folder:
        _save(dense, folder / out_path.name)
        names = _listing(folder, out_path.name)
    files = [out_path.parent / name for name in names]
    notes += _left_beside(in_path)
    return ConvertReport.of(files, config, report, weights=stored(), notes=notes, begin=begin)


def _left_beside(in_path: Path) -> tuple[str, ...]:
    """A file alone takes no genai_config.json along."""
    if not (in_path.parent / GENAI_CONFIG).is_file():
        return ()
    return (f"For onnxruntime-genai rewrite the folder {in_path.parent}: its {GENAI_CONFIG} must change too.",)


def convert(
    model: str | Path,
    out_path: str | Path,
    config: DeltaConfig,
    *,
    plan: AttentionPlan | None = None,
    origin: PlanOrigin | None = None,
    unfused: bool = False,
    statistics: bool | None = None,
    allow_partial: bool = False,
    copy_library: bool = True,
    context: int | None = None,
    weights: WeightFormat | None = None,
    ternary_bits: int = 2,
    calibrate: Calibrator | None = None,
    progress: Progress | None = None,
) -> ConvertReport:
    """Trace a Hugging Face causal language model and rewrite its attention.

    Beside the .onnx file come its weights, `<name>.data`, the tokenizer, the configurations and genai_config.json. The
    operator library is not needed for this.

    Args:
        model: a model directory, or a hub id such as "owner/name".
        out_path: the .onnx file to write; files of the same names in its folder are replaced, unless they belong to
            another model.
        config: as for `rewrite`, and so are the other arguments.
        plan: see `rewrite`.
        origin: see `rewrite`.
        unfused: see `rewrite`.
        statistics: see `rewrite`.
        allow_partial: see `rewrite`.
        copy_library: see `rewrite`; without the library nothing is copied.
        weights: how to store the weight matrices; None is float32, and codes for the ternary ones of BitNet models.
        ternary_bits: of those codes: 2, or 4 for ONNX Runtime before 1.28.
        context: see `rewrite`; None leaves `int4` caches without a fixed size, which onnxruntime-genai cannot allocate.
        calibrate: finds the thresholds of the dense model, such as
            `deltallm_onnx.calibration.default.ShortCalibration`; its config and plan are then taken instead of those
            given, and `<stem>.deltallm.json` is written beside the model. A sentence instead says why there are none.
        progress: see `rewrite`.

    Raises:
        DeltaLLMError: for a model that cannot be read, traced or rewritten, a path that cannot be written, and where
            torch or transformers are not installed; nothing is written then.
    """
    begin, out_path, say = time.perf_counter(), Path(out_path), progress or _silent
    options = _Options(config, unfused, statistics, allow_partial, copy_library, context, weights, plan, origin)
    exporting = staged_export(
        model, out_path, weights=weights, ternary_bits=ternary_bits, say=say, keep_before=calibrate is not None
    )
    with exporting as staging:
        folder, exported = staging.folder, staging.report
        calibration: Calibration | str | None = None
        if calibrate is not None:
            calibration = calibrate(exported.path, say, before=staging.before, weights=_stored(weights))
        if calibration is not None and not isinstance(calibration, str):
            options = dataclasses.replace(options, config=calibration.config, plan=calibration.plan)
            calibration = calibration.noting(_weights_on_top(_stored(weights), calibration, model, out_path))
            calibration.save(calibration_path(folder / out_path.name))
        dense = open_dense_model(exported.path)
        plan_notes = options.notes(dense)
        say("Rewriting")
        report = options.apply(dense)
        # The dense model's weights become the rewritten model's where they lie: the new file refers to the old data.
        rewritten = folder / f"{out_path.name}.rewritten"
        library = genai_library(wanted=copy_library, needed=False)
        notes = _fit_genai(read_genai_folder(folder), folder, dense, options, library=library, context=context)
        notes += renamed_in_config(out_path)
        ir.save(dense.model, rewritten, format="protobuf")
        rewritten.replace(exported.path)
        names = _listing(folder, out_path.name)
    files = [out_path.parent / name for name in names]
    size, peak = byte_text(4 * exported.parameters), byte_text(exported.peak_rss_bytes)
    memory = f"peak memory of the export: {peak} for {size} of float32 weights"
    notes = (memory, *exported.notes, *plan_notes, *notes)
    if isinstance(calibration, str):
        notes, calibration = (*notes, calibration), None
    return ConvertReport.of(
        files,
        options.config,
        report,
        weights=exported.weights,
        notes=notes,
        begin=begin,
        calibration=calibration,
    )


def _stored(weights: WeightFormat | None) -> str:
    """Name of the format that weights lose something by; empty where there is none."""
    return "" if weights is None or weights.name == "float32" else weights.name


def _weights_on_top(stored: str, calibration: Calibration, model: str | Path, out_path: Path) -> tuple[str, ...]:
    """A calibration compares with the model as it is stored, which is not all that a user loses."""
    if not stored or calibration.weights is not None:
        return ()
    note = (
        f"the budget is kept against the same {stored} weights, and what these cost comes on top and was not measured: "
        f"measure both with 'deltallm-onnx eval {out_path} --baseline {model} --text FILE'."
    )
    return (note,)


def _rewrite_folder(source: Path, out: Path, options: _Options, say: Progress) -> ConvertReport:
    begin = time.perf_counter()
    genai = read_genai_folder(source)
    in_path = find_model(source, genai)
    library = None if genai is None else genai_library(wanted=options.copy_library, needed=True)
    check_new_folder(out)
    if source.resolve() in (out.resolve(), *out.resolve().parents):
        raise DeltaLLMError(f"The output folder {out} lies inside the model's folder {source}: give another one.")
    check_writable(out.parent / f"{out.name}.partial")
    say(f"Reading {in_path}")
    dense = open_dense_model(in_path)
    if options.weights is not None:
        refuse_quantised(dense.model, str(in_path))
    notes = options.notes(dense)
    context = options.context
    if genai is None:
        refuse_missing_config(dense.model, source)
    else:
        notes += genai_warnings(genai, dense.model)
        context = context or genai.context_length
        if context is None and options.config.cache_format == "int4":
            raise DeltaLLMError(
                f"{genai.path} has no model.context_length, and onnxruntime-genai allocates int4 caches for that many "
                "tokens: add it there, or choose int8."
            )
        options = dataclasses.replace(options, statistics=bool(options.statistics))
    say(f"Rewriting {in_path}")
    report = options.apply(dense)
    stored = options.store_weights(dense)
    _check_room(dense, out.parent)
    say(f"Writing {out}")
    with staged(out) as staging:
        folder = staging / out.name
        folder.mkdir()
        replaced = {in_path}
        if len(list(source.rglob("*.onnx"))) == 1:
            # With other models in the folder, the data files may be theirs too.
            replaced |= {source / file.relative_to(source.resolve()) for file in dense.data_files}
        copy_side_files(source, folder, leave_out=replaced)
        notes += _fit_genai(genai, folder, dense, options, library=library, context=context)
        _save(dense, folder / in_path.name)
        names = _listing(folder, in_path.name)
        if out.is_dir():
            out.rmdir()
    files = [out / name for name in names]
    return ConvertReport.of(files, options.config, report, weights=stored(), notes=notes, begin=begin)


def _listing(folder: Path, first: str) -> list[Path]:
    """All files below a folder, relative to it, the named one first."""
    names = sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    return sorted(names, key=lambda name: name != Path(first))


def _fit_genai(
    genai: GenaiFolder | None,
    folder: Path,
    dense: DenseModel,
    options: _Options,
    *,
    library: Path | None,
    context: int | None,
) -> tuple[str, ...]:
    """Write genai_config.json, if the model has one; its notes."""
    if genai is None:
        return ()
    return fit_genai_folder(genai, folder, dense.model, options.config, library=library, context=context)


def _check_room(dense: DenseModel, folder: Path) -> None:
    """Refuse weights that the disk has no room for, before the first byte is written."""
    tensors = (value.const_value for graph in dense.model.graphs() for value in graph.initializers.values())
    check_disk(folder, sum(tensor.nbytes for tensor in tensors if tensor is not None), "The rewritten model")


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
        try:
            ir.save(dense.model, path, format="protobuf")
        except ir.serde.SerdeError as error:
            raise _refusal_behind(error) or error from error
        return
    refuse_external_attributes(dense)
    try:
        ir.save(dense.model, path, format="protobuf", external_data=_data_path(path).name, max_workers=1)
    except ValueError as error:
        # onnx_ir refuses data files with several hard links when it opens them.
        reason = " ".join(str(error).split())
        raise DeltaLLMError(f"The weights of {dense.path} cannot be read ({reason}): copy the model first.") from error


def _refusal_behind(error: BaseException) -> DeltaLLMError | None:
    """What a weight refused when the serializer asked for it; the serializer wraps all errors in its own."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DeltaLLMError):
        cause = cause.__cause__
    return cause


def _silent(_: str) -> None:
    """Progress that nobody wants to see."""
