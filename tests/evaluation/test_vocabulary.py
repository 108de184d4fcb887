from __future__ import annotations

from pathlib import Path

import pytest

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.evaluation.vocabulary import refuse_other_vocabulary


def test_two_sizes_are_refused_and_one_is_not() -> None:
    refuse_other_vocabulary(Path("m.onnx"), 29, Path("d.onnx"), 29)
    for model, baseline in ((29, 31), (31, 29)):
        sentence = (
            rf"^m\.onnx has {model} tokens in its vocabulary and d\.onnx {baseline}: compare a model with its own"
        )
        with pytest.raises(DeltaLLMError, match=sentence):
            refuse_other_vocabulary(Path("m.onnx"), model, Path("d.onnx"), baseline)
