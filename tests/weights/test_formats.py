"""Which formats there are, what they default to, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deltallm_onnx import DeltaLLMError, WeightFormat


def test_defaults() -> None:
    assert WeightFormat() == WeightFormat("float32", None, None, None)
    assert WeightFormat("int4") == WeightFormat("int4", 32, True, 4)
    assert WeightFormat("int8", symmetric=False) == WeightFormat("int8", 32, False, 4)
    # the fast arithmetic would be wrong
    assert WeightFormat("int4", symmetric=False) == WeightFormat("int4", 32, False, 0)
    assert [WeightFormat(name).bits for name in ("float32", "float16", "int8", "int4")] == [0, 0, 8, 4]  # type: ignore[arg-type]


def test_as_json() -> None:
    assert json.loads(json.dumps(WeightFormat("float16").to_dict())) == {"name": "float16"}
    fields = {"name": "int8", "block_size": 64, "symmetric": True, "accuracy_level": 0}
    assert WeightFormat(**fields).to_dict() == fields  # type: ignore[arg-type]


REFUSED = {
    "unknown": ({"name": "int3"}, "choose one of float32, float16, int8, int4"),
    "block size": ({"name": "int4", "block_size": 48}, "block size is 48: choose one of 16, 32, 64, 128, 256"),
    "no block": ({"name": "int8", "block_size": 0}, "block size is 0"),
    "level": ({"name": "int8", "accuracy_level": 3}, "accuracy level is 3: choose one of 0, 4"),
    "wrong results": ({"name": "int4", "symmetric": False, "accuracy_level": 4}, "wrong results"),
    "block size of floats": ({"name": "float16", "block_size": 32}, "float16 weights have no block size"),
    "symmetry of floats": ({"name": "float32", "symmetric": False}, "float32 weights have no symmetry"),
    "level of floats": ({"accuracy_level": 0}, "float32 weights have no accuracy level"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    fields: dict[str, Any]
    fields, words = REFUSED[case]
    with pytest.raises(DeltaLLMError, match=words) as refusal:
        WeightFormat(**fields)
    assert str(refusal.value).count(".") == 1
