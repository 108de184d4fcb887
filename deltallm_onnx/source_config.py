"""Read what Hugging Face's config.json beside an exported model says of its attention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.passes.expected_attention import ExpectedAttention

CONFIG = "config.json"
_SLIDING = "sliding_attention"


def read_source_config(folder: Path) -> ExpectedAttention | None:
    """What a folder's config.json says of softcap and sliding windows; None without that file.

    Args:
        folder: where the model lies.

    Raises:
        DeltaLLMError: where the file is not JSON, or holds something else than numbers there.
    """
    path = folder / CONFIG
    if not path.is_file():
        return None
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DeltaLLMError(f"{path} cannot be read as JSON ({error}): correct it or remove it.") from error
    # Models of several kinds of data keep what concerns the text apart.
    nested = data.get("text_config") if isinstance(data, dict) else None
    config = nested if isinstance(nested, dict) else data
    if not isinstance(config, dict):
        raise DeltaLLMError(f"{path} holds no JSON object: correct it or remove it.")
    return ExpectedAttention(str(path), _number(config, "attn_logit_softcapping", path), _windows(config, path))


def _windows(config: dict[str, Any], path: Path) -> tuple[int | None, ...] | None:
    """The window of each layer, as transformers reads it."""
    window = _number(config, "sliding_window", path)
    layers = _number(config, "num_hidden_layers", path)
    kinds = config.get("layer_types")
    if isinstance(kinds, list):
        return tuple(int(window) if window is not None and kind == _SLIDING else None for kind in kinds)
    if layers is None:
        return None
    # Qwen2 names a window and says beside it whether it is used.
    used = window is not None and config.get("use_sliding_window", True) is not False
    return (int(window) if used and window is not None else None,) * int(layers)


def _number(config: dict[str, Any], name: str, path: Path) -> float | None:
    value = config.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**31:
        raise DeltaLLMError(f"{path} has {name} = {value!r}, which is no size: correct it or remove the file.")
    return float(value)
