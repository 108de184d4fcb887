"""Write a report: the page, its data and its pictures, all or nothing."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.report.drawing.export import to_png
from deltallm_onnx.report.drawing.pictures import draw
from deltallm_onnx.report.gather import Progress, gather
from deltallm_onnx.report.page import render
from deltallm_onnx.report.request import ReportRequest
from deltallm_onnx.scratch_folder import scratch_folder


def _silent(_text: str) -> None:
    """Tell nobody."""


def write_report(
    request: ReportRequest,
    out: Path,
    *,
    json_file: Path | None = None,
    png_folder: Path | None = None,
    progress: Progress = _silent,
) -> tuple[dict[str, Any], list[Path]]:
    """Measure, draw and write.

    Args:
        request: what to report on.
        out: the HTML file; its folder must exist.
        json_file: the data as a file too.
        png_folder: pictures as PNG files too; made if it is missing.
        progress: told what is under way.

    Returns:
        The data, and the files written.

    Raises:
        DeltaLLMError: as `gather`; for a path that cannot be written; and without matplotlib or jinja2. Nothing is
            written then.
    """
    check_paths(request, out, json_file, png_folder)
    data = gather(request, progress=progress)
    progress("Drawing")
    pictures = draw(data)
    page = render(data, pictures)
    written: list[Path] = []
    with _staging(out.parent) as folder:
        files = {out: folder / "report.html"}
        files[out].write_text(page, encoding="utf-8")
        if json_file is not None:
            files[json_file] = folder / "report.json"
            files[json_file].write_text(_json_text(data), encoding="utf-8")
        if png_folder is not None:
            png_folder.mkdir(exist_ok=True)
            drawn = [to_png(picture, folder) for found in pictures.values() for picture in found]
            files |= {png_folder / path.name: path for path in drawn}
        for target, made in files.items():
            _place(made, target)
            written.append(target)
    return data, written


def _json_text(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def check_paths(request: ReportRequest, out: Path, json_file: Path | None, png_folder: Path | None) -> None:
    """Refuse what cannot be written before minutes of measuring; the arguments are those of `write_report`.

    Raises:
        DeltaLLMError: naming the path.
    """
    read = {path.resolve() for path in (request.model, request.baseline, request.text, request.calibration) if path}
    read |= {path.resolve() for path in (*request.studies, *request.records)}
    for path in (out, json_file):
        if path is None:
            continue
        if path.is_dir():
            raise DeltaLLMError(f"{path} is a directory: name the file to write.")
        if not path.parent.is_dir():
            raise DeltaLLMError(f"The folder {path.parent} does not exist: make it first, or name another file.")
        if path.resolve() in read:
            raise DeltaLLMError(f"Writing {path} would replace a file that is read: give another output path.")
    if json_file is not None and json_file.resolve() == out.resolve():
        raise DeltaLLMError(f"{out} is named for the page and for its JSON: give two files.")
    if png_folder is not None and not png_folder.is_dir():
        if png_folder.exists():
            raise DeltaLLMError(f"{png_folder} is a file: name a folder for the pictures.")
        if not png_folder.parent.is_dir():
            raise DeltaLLMError(f"The folder {png_folder.parent} does not exist: make it first, or name another one.")


@contextlib.contextmanager
def _staging(parent: Path) -> Iterator[Path]:
    """A folder on the disk of the output, gone afterwards."""
    try:
        with scratch_folder(parent, "report") as folder:
            yield folder
    except OSError as error:
        raise DeltaLLMError(f"Cannot write the report into {parent} ({error.strerror or error}).") from error


def _place(made: Path, target: Path) -> None:
    """Move a finished file to its place, whole even where that is on another disk."""
    beside = target.with_name(f".{target.name}.partial")
    try:
        shutil.move(made, beside)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
