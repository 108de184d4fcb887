from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.tiny_decoder import save_tiny_decoder


@pytest.fixture(scope="session")
def dense_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny decoder with a tokenizer of single letters; token 26, the blank, ends a text, token 27 begins one."""
    folder = tmp_path_factory.mktemp("dense")
    path = save_tiny_decoder(folder, end_of_sequence=26)
    config = {"bos_token_id": 27, "eos_token_id": 26, "max_position_embeddings": 140}
    (folder / "config.json").write_text(json.dumps(config))
    return path
