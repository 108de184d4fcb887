"""How a package is loaded on Linux: the C++ runner, C, Python."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from deltallm_onnx.package.library import version_text
from deltallm_onnx.package.parts import PROMPT, Parts
from deltallm_onnx.package.programs import ONNXRUNTIME, RUNNER

_NEW_TOKENS = 48


def linux_lines(parts: Parts, folder: Path) -> Iterator[str]:
    """The sections for Linux.

    Args:
        parts: of the package.
        folder: of the package, with its tokenizer.
    """
    yield from _needs(parts)
    yield ""
    yield from _runner(parts)
    yield ""
    yield from _python(parts, folder)
    yield ""
    yield from _c(parts)
    if (folder / "genai_config.json").is_file():
        yield ""
        yield "## onnxruntime-genai"
        opens = '`onnxruntime_genai.Model(".")` opens the folder (not run here)'
        yield f"genai_config.json names {parts.target.library}: {opens}."


def _needs(parts: Parts) -> Iterator[str]:
    yield "## What the device needs"
    programs = (parts.library, parts.runner, parts.onnxruntime)
    versions = [program.glibc for program in programs if program is not None and program.glibc is not None]
    glibc = f" with glibc {version_text(max(versions))} or newer" if versions else ""
    yield f"{parts.target.title}{glibc}, and libstdc++.so.6 for ONNX Runtime."
    if parts.onnxruntime is None:
        yield (
            f"ONNX Runtime's shared library as `{ONNXRUNTIME}` in this folder: from its release for Linux on "
            f"{parts.target.machine}, or `onnxruntime/capi/` in its wheel, where the name goes on with the version."
        )
    elif parts.onnxruntime.version:
        yield f"`{ONNXRUNTIME}` is ONNX Runtime {parts.onnxruntime.version}."


def _runner(parts: Parts) -> Iterator[str]:
    yield "## C++, without Python"
    if parts.runner is None:
        commands = " && ".join(parts.target.runner_commands)
        yield f"`{RUNNER}` is not in this package: `{commands}` in deltallm-onnx's sources builds it."
    yield f"With {parts.prompt.what}:"
    library = f"--ops ./{parts.target.library}" if parts.library else "--copy-caches 1"
    yield ""
    yield (
        f"    ./{RUNNER} --model {shlex.quote(parts.model_name)} {library} --ort ./{ONNXRUNTIME} "
        f"--tokens {parts.prompt.tokens} --new {_NEW_TOKENS} --threads 4"
    )
    yield ""
    yield "New ids go to stdout; speed, cache bytes and peak memory to stderr. `--chunk 128` reads prompts in parts."


def _python(parts: Parts, folder: Path) -> Iterator[str]:
    yield "## Python"
    yield ""
    yield "```python"
    yield "import onnxruntime as ort"
    yield ""
    yield "options = ort.SessionOptions()"
    yield "options.enable_cpu_mem_arena = False"
    yield 'options.add_session_config_entry("session.intra_op.allow_spinning", "0")'
    if parts.library:
        yield f'options.register_custom_ops_library("./{parts.target.library}")'
    yield f'session = ort.InferenceSession("{parts.model_name}", options, providers=["CPUExecutionProvider"])'
    yield "```"
    if parts.library and parts.request.writes_onnx and (folder / "tokenizer.json").is_file():
        yield ""
        yield "With deltallm-onnx installed there, text in and text out:"
        yield ""
        yield (
            f"    DELTALLM_OPS_LIBRARY=./{parts.target.library} deltallm-onnx run {shlex.quote(parts.model_name)} "
            f'--prompt "{PROMPT}" --low-memory'
        )


def _c(parts: Parts) -> Iterator[str]:
    yield "## C"
    yield ""
    yield "```c"
    yield "#include <onnxruntime_c_api.h>"
    yield ""
    yield "OrtStatus* OpenDecoder(const OrtApi* api, OrtEnv* env, OrtSession** session) {"
    yield "  OrtSessionOptions* options = 0;"
    yield "  OrtStatus* status = api->CreateSessionOptions(&options);"
    steps = ["DisableCpuMemArena(options)", 'AddSessionConfigEntry(options, "session.intra_op.allow_spinning", "0")']
    if parts.library:
        steps.append(f'RegisterCustomOpsLibrary_V2(options, "./{parts.target.library}")')
    steps.append(f'CreateSession(env, "{parts.model_name}", options, session)')
    for step in steps:
        yield f"  if (!status) status = api->{step};"
    yield "  if (options) api->ReleaseSessionOptions(options);"
    yield "  return status;"
    yield "}"
    yield "```"
