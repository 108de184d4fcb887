"""The library out of the ARM64 wheel, in ARM64's ONNX Runtime under qemu."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from support.arm64 import Guest
from support.op_session import delta_attention_model
from support.packed_cases import PackedCase, run_oracle

LIBRARY = "deltallm_onnx/libdeltallm_ops.so"
CASE = PackedCase(tokens=41, head_size=24, spare=3)
ENDS = [29, 30, 33, 40, 41]


@pytest.fixture(scope="module")
def guest(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Guest:
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(wheels["aarch64"]) as archive:
        made = Guest(folder, Path(archive.extract(LIBRARY, folder)))
    past = CASE.first_past()
    assert past is not None
    arrays = {**CASE.feeds(0, CASE.tokens), "past_key": past, "past_value": past}
    made.add(
        "int8",
        delta_attention_model(arrays, **CASE.attributes),
        arrays,
        ends=ENDS,
        axes={"query": {1: "new"}, "key": {1: "new"}, "value": {1: "new"}, "attention_mask": {1: "total"}},
        outputs={"output": 1, "statistics": None},
        caches={"past_key": "present_key", "past_value": "present_value"},
    )
    made.run("cortex-a76")
    return made


def test_it_leaves_the_bytes_of_the_oracle(guest: Guest) -> None:
    expected, found = run_oracle(CASE, np.diff([0, *ENDS]).tolist()), guest.result("int8")
    keys, values = CASE.in_use(expected.key, expected.value)
    assert keys.any(axis=(2, 3)).all()
    np.testing.assert_array_equal(found["present_key"][keys], expected.key[keys])
    np.testing.assert_array_equal(found["present_value"][values], expected.value[values])
    np.testing.assert_array_equal(found["statistics"], expected.statistics)
