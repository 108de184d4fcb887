"""Folders of onnxruntime-genai's model builder, before and after the rewriting, each made once per session."""

from __future__ import annotations

import os

# onnxruntime and onnxruntime-genai write an identifier of the machine and tell their maker what they do, from the
# moment they are imported, unless this is set; nothing is to be fetched either.
os.environ.update({"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"})

from collections.abc import Callable  # the variables come first
from pathlib import Path
from typing import Any

import pytest
from support.genai_models import built, shared_directory

import deltallm_onnx
from deltallm_onnx import DeltaConfig


@pytest.fixture(scope="session")
def genai_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`built` in a directory that the session shares."""
    return lambda name, **settings: built(name, shared_directory(tmp_path_factory), **settings)


@pytest.fixture(scope="session")
def rewritten_folder(
    genai_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """The same folder rewritten with a configuration, once per session and worker."""
    made: dict[tuple[Any, ...], Path] = {}

    def rewritten(name: str, config: DeltaConfig, **settings: Any) -> Path:
        key = (name, config, *sorted(settings.items()))
        if key not in made:
            target = tmp_path_factory.mktemp("rewritten") / "genai"
            report = deltallm_onnx.rewrite(genai_folder(name, **settings), target, config)
            assert report.rewrite.rewritten == report.rewrite.layers > 0
            made[key] = target
        return made[key]

    return rewritten
