"""The README.md of a package: what is in it, and the exact lines that load it there."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import onnxruntime as ort

import deltallm_onnx
from deltallm_onnx.package.checksums import SHA256SUMS
from deltallm_onnx.package.model_set import README
from deltallm_onnx.package.oldest_runtime import oldest_runtime
from deltallm_onnx.package.parts import Parts
from deltallm_onnx.package.programs import ONNXRUNTIME, RUNNER
from deltallm_onnx.package.readme_apps import app_lines
from deltallm_onnx.package.readme_linux import linux_lines
from deltallm_onnx.package.sources import SOURCES

_WHAT = {
    RUNNER: "the C++ runner: token ids in, token ids out",
    ONNXRUNTIME: "ONNX Runtime",
    "config.json": "the model's configuration",
    "generation_config.json": "where a text ends",
    "genai_config.json": "for onnxruntime-genai",
    "tokenizer.json": "the tokenizer",
    "tokenizer_config.json": "its settings",
}


def write_readme(parts: Parts, folder: Path) -> None:
    """Write README.md into a package that is otherwise whole, but for its checksums."""
    lines = [*_head(parts, folder), ""]
    lines += linux_lines(parts, folder) if parts.target.system == "linux" else app_lines(parts)
    lines += ["", *_memory(parts)]
    if parts.request.writes_ort:
        lines += ["", *_ort(parts)]
    (folder / README).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _head(parts: Parts, folder: Path) -> Iterator[str]:
    formats = " and ".join(parts.model.cache_formats)
    yield f"# {parts.model.path.stem} for {parts.target.title}"
    yield ""
    yield (
        f"A language model with delta attention in {parts.model.signature.delta_nodes} nodes and {formats} caches, "
        f"packaged by deltallm-onnx {deltallm_onnx.__version__}. After copying, see whether all of it has come:"
    )
    yield ""
    # What a Mac has, where apps for iOS are made.
    program = "shasum -a 256" if parts.target.system == "ios" else "sha256sum"
    yield f"    {program} -c {SHA256SUMS}"
    yield ""
    yield "| file | bytes | what |"
    yield "|---|---|---|"
    for path in sorted(folder.iterdir()):
        if path.is_file():
            yield f"| {path.name} | {path.stat().st_size} | {_what(parts, path.name)} |"
    if parts.sources is not None:
        yield f"| {SOURCES}/ | | the operators' sources, to be built |"
    opsets = ", ".join(f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in parts.model.proto.opset_import)
    yield ""
    yield f"Operator sets of the model: {opsets}; it needs ONNX Runtime {oldest_runtime(parts.model.proto)} or newer."


def _what(parts: Parts, name: str) -> str:
    model = parts.model.path
    what = {
        **_WHAT,
        model.name: "the model" + (", its weights beside it" if parts.model.data_files else ""),
        parts.ort_name: "the model in ONNX Runtime's own format, one file",
        **dict.fromkeys((path.name for path in parts.model.data_files), "the weights"),
    }
    if parts.library is not None:
        what[parts.target.library] = f"the operator library: {parts.library.facts}"
    if name.endswith(".required_operators.config"):
        return "operators that a minimal build of ONNX Runtime needs for it"
    if name.endswith("deltallm.json"):
        return "the calibration: thresholds, and what they cost"
    return what.get(name, "of the tokenizer")


def _memory(parts: Parts) -> Iterator[str]:
    yield "## Memory"
    yield parts.facts.memory_line
    yield (
        "It is an upper bound; what ONNX Runtime takes for itself, and what its kernels keep of weights, was measured "
        "on x86-64 with version 1.32."
    )


def _ort(parts: Parts) -> Iterator[str]:
    name, config = parts.ort_name, f"{parts.model.path.stem}.required_operators.config"
    yield "## The .ort"
    if parts.request.form == "operator":
        yield (
            f"{name} calls the operator library: it is fast, and does not open without the library. The other form, "
            "`package … --ort-form fallback`, has standard operators in place of delta attention: it opens without the "
            "library and is slow, for float32 and float16 caches only."
        )
    else:
        yield (
            f"{name} has standard operators in place of delta attention: it opens without the operator library and is "
            "slow, and past and present caches must be apart. The other form, `--ort-form operator`, calls the library."
        )
    yield (
        "Which of the two an .ort is, is frozen in it; of an .onnx it is decided when it is opened, by whether the "
        "library is registered."
    )
    yield ""
    yield (
        f"It was written by ONNX Runtime {ort.__version__} for {parts.target.machine}: an older one opens it where it "
        f"has every operator in {config}. For a build of ONNX Runtime with these operators alone, in a checkout of its "
        "sources (not built here):"
    )
    yield ""
    yield (
        "    ./build.sh --config MinSizeRel --build_shared_lib --minimal_build custom_ops --skip_tests "
        f"--include_ops_by_config {shlex.quote(config)}"
    )
