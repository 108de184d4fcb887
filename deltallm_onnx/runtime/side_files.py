"""What the JSON files beside a model say: where a text ends, and how long a context may be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deltallm_onnx.errors import DeltaLLMError

# The name of the context length, by family of models.
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")


def end_of_sequence_ids(folder: Path) -> frozenset[int]:
    """Token ids that end a text, from generation_config.json, else config.json, else genai_config.json.

    genai_config.json is asked only where both others are absent: it must hold a number even for a model without one.
    """
    names = [name for name in ("generation_config.json", "config.json") if (folder / name).is_file()]
    for name in names or ["genai_config.json"]:
        data = read_json(folder / name)
        section = data if names else data.get("model")
        found = section.get("eos_token_id") if isinstance(section, dict) else None
        ids = found if isinstance(found, list) else [found]
        if found is not None:
            if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
                raise DeltaLLMError(
                    f"{folder / name} has the eos_token_id {found!r}: one token id or a list is needed."
                )
            return frozenset(ids)
    return frozenset()


def context_length(folder: Path) -> int | None:
    """The model's context length in tokens, from config.json, else genai_config.json; None if neither says."""
    config = read_json(folder / "config.json")
    genai = read_json(folder / "genai_config.json").get("model")
    sections = [config, config.get("text_config")]
    found = [section.get(key) for section in sections if isinstance(section, dict) for key in _CONTEXT_KEYS]
    if isinstance(genai, dict):
        found.append(genai.get("context_length"))
    for length in found:
        if isinstance(length, int) and not isinstance(length, bool) and length > 0:
            return length
    return None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; an absent file is an empty object.

    Raises:
        DeltaLLMError: where the file is there but is not one JSON object.
    """
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DeltaLLMError(f"{path} cannot be read as JSON ({error}): correct it or remove it.") from error
    if not isinstance(data, dict):
        raise DeltaLLMError(f"{path} holds a {type(data).__name__}: one JSON object is needed.")
    return data
