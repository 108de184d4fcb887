"""Put a package together: everything is checked before the first byte is written, and nothing is left half done."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.export.output import check_writable, staged
from deltallm_onnx.ort_format import write_ort
from deltallm_onnx.package.checksums import SHA256SUMS, write_checksums
from deltallm_onnx.package.licences import copy_licences
from deltallm_onnx.package.model_set import copy_genai_config, copy_model, copy_side_files
from deltallm_onnx.package.parts import Parts, find_parts
from deltallm_onnx.package.private_paths import files_naming, own_folders
from deltallm_onnx.package.readme import write_readme
from deltallm_onnx.package.request import PackageRequest
from deltallm_onnx.package.result import PackagedFile, PackageResult
from deltallm_onnx.package.sources import copy_sources
from deltallm_onnx.package.targets import checkout, find_target
from deltallm_onnx.preflight import check_disk

Progress = Callable[[str], None]


def package_model(request: PackageRequest, *, progress: Progress | None = None) -> PackageResult:
    """Write a rewritten model, and what a device needs to run it, into one folder.

    Args:
        request: the model, the target, the folder and what to take along.
        progress: receives one line per step.

    Raises:
        DeltaLLMError: for an unknown target, a model that is no rewritten decoder or that the target cannot feed, a
            library or program for another system, a missing library, and a folder that is not empty or cannot be
            written; nothing is written then.
    """
    say = progress or _silent
    target = find_target(request.target)
    _check_out(request.out)
    say(f"Reading {request.model}")
    parts = find_parts(request, target)
    check_disk(request.out if request.out.is_dir() else request.out.parent, parts.size, "The package")
    with _staging(request.out) as folder:
        say(f"Writing {request.out}")
        notes = _write(parts, folder, say)
        digests = write_checksums(folder)
        sizes = {name: (folder / name).stat().st_size for name in digests}
    return PackageResult(
        folder=request.out,
        target=target.name,
        files=tuple(PackagedFile(name, sizes[name], digest) for name, digest in digests.items()),
        library=None if parts.library is None else parts.library.facts,
        library_source=None if parts.library is None else parts.library.path,
        memory=parts.facts.memory_line,
        notes=notes,
    )


def _check_out(out: Path) -> None:
    """Refuse a folder that holds something, or that cannot be made."""
    if not out.is_dir():
        if out.exists() or out.is_symlink():
            raise DeltaLLMError(f"{out} is a file, and a package is a folder: give a new folder.")
        check_writable(out)
    elif any(out.iterdir()):
        raise DeltaLLMError(f"The folder {out} is not empty: give a new one.")
    else:
        check_writable(out / SHA256SUMS)


@contextlib.contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `out` when the block ends well."""
    if out.is_dir():
        # Its files move one by one, the checksums last: the folder itself may be a place where a disk is mounted.
        with staged(out / SHA256SUMS) as folder:
            yield folder
        return
    with staged(out) as staging:
        folder = staging / out.name
        folder.mkdir()
        yield folder


def _write(parts: Parts, folder: Path, say: Progress) -> tuple[str, ...]:
    """Write all files but the checksums; the notes."""
    request, target, model = parts.request, parts.target, parts.model
    private = own_folders(model.folder, *filter(None, [checkout()]))
    notes: list[str] = []
    weights: list[Path] = []
    if request.writes_ort:  # first, for it may refuse
        say(f"Converting {model.path.name} with ONNX Runtime")
        write_ort(model.path, folder / parts.ort_name, form=request.form, platform=target.ort_platform)
    if request.writes_onnx:
        notes += copy_model(model, folder, private)
        weights += [folder / path.relative_to(model.path.resolve().parent) for path in model.data_files]
    notes += copy_side_files(model, folder)
    notes += copy_genai_config(model, folder, request, target)
    _copy_programs(parts, folder)
    notes += parts.lacks()
    write_readme(parts, folder)
    notes += [
        f"{name} names a folder of this machine: see whether others should read it."
        for name in files_naming(folder, private, weights)
    ]
    return tuple(notes)


def _copy_programs(parts: Parts, folder: Path) -> None:
    for name, path in parts.programs.items():
        shutil.copyfile(path, folder / name)
        (folder / name).chmod(0o755)
    if parts.sources is not None:
        copy_sources(parts.sources, folder)
    copy_licences(folder, parts.onnxruntime.licences if parts.onnxruntime else ())


def _silent(_: str) -> None:
    """Progress that nobody wants to see."""
