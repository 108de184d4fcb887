"""What a minimal build of ONNX Runtime must contain to run an .ort.

Format: onnxruntime.ai, "Reduced operator config file", for `build.sh --minimal_build custom_ops`.
"""

from __future__ import annotations

from pathlib import Path

from deltallm_onnx.runtime.ort_file import required_operators
from deltallm_onnx.runtime.signature import DOMAIN


def write_required_operators(model: Path, config: Path) -> None:
    """List the operators of a model, by domain and version.

    Operators of the library are no part of ONNX Runtime, and building it knows nothing of them: a comment has them.

    Args:
        model: an .ort file.
        config: the text file to write.
    """
    needed = required_operators(model)
    lines = [f"# Kernels of ONNX Runtime that {model.name} needs: build it with --include_ops_by_config."]
    ours = sorted(name for (domain, _), names in needed.items() if domain == DOMAIN for name in names)
    if ours:
        lines.append(f"# {', '.join(ours)}: from the operator library, so build with --minimal_build custom_ops.")
    for (domain, version), names in sorted(needed.items()):
        if domain != DOMAIN:
            lines.append(f"{domain};{version};{','.join(sorted(names))}")
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
