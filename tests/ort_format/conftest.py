from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.tiny_decoder import save_tiny_decoder

from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.convert import rewrite
from deltallm_onnx.ort_format import OrtForm, write_ort

#: Half of the longest sequence lies behind the window; int4 seals a block of 128 of the coded tokens.
COARSE = DeltaConfig(threshold=1.3, window=29, sinks=3, prefill="delta")

#: Makes a rewritten .onnx, by the name of its cache format; "unfused" is float32 in two operators per layer.
Rewritten = Callable[[str], Path]
#: Makes the .ort of such a model, by the name of its cache format and the form, once.
Frozen = Callable[[str, OrtForm], Path]


@pytest.fixture(scope="session")
def dense_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_decoder(tmp_path_factory.mktemp("ort_format"))


@pytest.fixture(scope="session")
def rewritten(dense_path: Path) -> Rewritten:
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            cache_format = "float32" if name == "unfused" else name
            config = COARSE.replace(cache_format=cache_format)
            made[name] = rewrite(
                dense_path, dense_path.with_name(f"{name}.onnx"), config, unfused=name == "unfused"
            ).path
        return made[name]

    return make


@pytest.fixture(scope="session")
def frozen(rewritten: Rewritten) -> Frozen:
    made: dict[tuple[str, OrtForm], Path] = {}

    def make(name: str, form: OrtForm) -> Path:
        if (name, form) not in made:
            source = rewritten(name)
            made[name, form] = write_ort(source, source.with_name(f"{name}-{form}.ort"), form=form).model
        return made[name, form]

    return make
