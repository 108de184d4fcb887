"""`convert` and `rewrite` with an .ort as their result: the .onnx is a step on the way, and is gone afterwards."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.export.output import check_writable, staged
from deltallm_onnx.genai_folder import GENAI_CONFIG, library_missing
from deltallm_onnx.model_folder import calibration_path, refuse_another_model, renamed_in_config
from deltallm_onnx.ort_format.write import OrtForm, OrtPlatform, write_ort
from deltallm_onnx.packed_sizes import PACKED_FORMATS
from deltallm_onnx.runtime.library import ops_library_path

if TYPE_CHECKING:  # importing it for real takes as long as the passes do
    from deltallm_onnx.convert import ConvertReport


def in_ort_format(
    action: Callable[..., ConvertReport], *, form: OrtForm, platform: OrtPlatform | None
) -> Callable[..., ConvertReport]:
    """`deltallm_onnx.convert` or `rewrite`, made to write an .ort.

    Args:
        action: one of the two.
        form: as in `write_ort`.
        platform: as in `write_ort`.

    Returns:
        A function with the arguments of `action` whose second is the path of the .ort. Beside it come its
        `required_operators.config` and whatever `action` writes beside an .onnx, but for the weights.
    """

    def write(
        model: str | Path,
        out_path: str | Path,
        config: DeltaConfig,
        *,
        progress: Callable[[str], None] | None = None,
        **options: Any,
    ) -> ConvertReport:
        begin, out, say = time.perf_counter(), Path(out_path), progress or _silent
        _check(model, out, config, form)
        with staged(out) as folder:
            onnx_path = folder / f"{out.stem}.onnx"

            def public(text: str) -> str:
                """What a user is told is where the files will be, not where they grow."""
                return text.replace(str(onnx_path), str(out)).replace(str(folder), str(out.parent))

            if form == "fallback":
                options["copy_library"] = False
            try:
                report = action(model, onnx_path, config, progress=lambda line: say(public(line)), **options)
                refuse_another_model(folder, out)
                say(f"Writing {out} in ONNX Runtime's format")
                write_ort(onnx_path, folder / out.name, form=form, platform=platform)
            except DeltaLLMError as error:
                raise DeltaLLMError(public(str(error))) from error
            for path in (onnx_path, onnx_path.with_name(f"{onnx_path.name}.data")):
                path.unlink(missing_ok=True)
            _name_in_genai_config(folder, out.name)
            calibration = report.calibration
            if calibration is not None:  # what its notes say of the model is said of an .onnx, as eval takes it
                said = [note.replace(str(folder), str(out.parent)) for note in calibration.notes]
                calibration = dataclasses.replace(calibration, notes=said)
                calibration.save(calibration_path(folder / out.name))
            notes = [public(note) for note in report.notes if form == "operator" or note != library_missing(config)]
            notes += [*renamed_in_config(out), _note(out, form)]
            files = [out.parent / path.name for path in sorted(folder.iterdir())]
        files.sort(key=lambda path: path != out)
        return dataclasses.replace(
            report,
            path=out,
            files=tuple(files),
            notes=tuple(notes),
            bytes_written=sum(path.stat().st_size for path in files),
            seconds=time.perf_counter() - begin,
            calibration=calibration,
        )

    return write


def _check(model: str | Path, out: Path, config: DeltaConfig, form: OrtForm) -> None:
    """Refuse what can be refused before minutes of tracing."""
    check_writable(out)
    if form == "fallback" and config.cache_format in PACKED_FORMATS:
        raise DeltaLLMError(
            f"{config.cache_format} caches have no function body that --ort-form fallback could write out: choose "
            "--cache-format float32 or float16, or --ort-form operator."
        )
    if form == "operator":
        ops_library_path()
    if Path(model).is_dir():
        refuse_another_model(Path(model), out)


def _name_in_genai_config(folder: Path, name: str) -> None:
    """Let onnxruntime-genai open the .ort, where there is a configuration for it."""
    path = folder / GENAI_CONFIG
    if path.is_file():
        data = json.loads(path.read_text(encoding="utf-8"))
        data["model"]["decoder"]["filename"] = name
        path.write_text(json.dumps(data, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")


def _note(out: Path, form: OrtForm) -> str:
    if form == "operator":
        return f"{out} calls the kernels of the operator library, and does not run without it."
    return f"{out} has delta attention written out in standard operators: slow, with the operator library or without."


def _silent(_: str) -> None:
    """Progress that nobody wants to see."""
