from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.evaluation_models import Rewritten
from support.tiny_decoder import VOCABULARY, save_tiny_decoder

from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.convert import rewrite


@pytest.fixture(scope="session")
def dense_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its tokenizer; POSITIONS is its context."""
    return save_tiny_decoder(tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="session")
def rewritten(dense_path: Path) -> Rewritten:
    """Rewrite the tiny model; the same settings give the same file."""

    def make(config: DeltaConfig, **options: bool) -> Path:
        settings = "-".join(str(value) for value in [*config.to_dict().values(), *sorted(options.items())])
        path = dense_path.with_name(f"{abs(hash(settings)):x}.onnx")
        if not path.exists():
            rewrite(dense_path, path, config, **options)
        return path

    return make


@pytest.fixture(scope="session")
def windows() -> np.ndarray:
    """Token ids [3, 97]."""
    return np.random.default_rng(41).integers(0, VOCABULARY, (3, 97))


@pytest.fixture(scope="session")
def text_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random letters: 2000 tokens of the tiny tokenizer."""
    path = tmp_path_factory.mktemp("text") / "letters.txt"
    letters = [*"abcdefghijklmnopqrstuvwxyz ."]
    path.write_text("".join(np.random.default_rng(43).choice(letters, 2000)), encoding="utf-8")
    return path
