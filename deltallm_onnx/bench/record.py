"""Run records: JSON files that appear whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltallm_onnx.errors import DeltaLLMError


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write one JSON object under a temporary name, then rename it.

    Args:
        path: of the file; its folder must exist.
        record: JSON-ready.

    Raises:
        DeltaLLMError: where the file cannot be written.
    """
    if path.is_dir():
        raise DeltaLLMError(f"{path} is a directory: name the JSON file to write.")
    if not path.parent.is_dir():
        raise DeltaLLMError(f"The folder {path.parent} does not exist: make it first, or name another file.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise DeltaLLMError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)
