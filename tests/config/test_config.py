"""DeltaConfig: JSON both ways, profiles, and a sentence for every value outside its range."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltallm_onnx.config import PROFILE_NAMES, DeltaConfig, profile
from deltallm_onnx.errors import DeltaLLMError

#: Packed caches need at least 8 tokens of sinks and window.
PACKED_EXACT = {"int8": 8, "int4": 8}


def build(cache_format: str, window: int, **fields: Any) -> DeltaConfig:
    return DeltaConfig(cache_format=cache_format, window=max(window, PACKED_EXACT.get(cache_format, 0)), **fields)


configs = st.builds(
    build,
    threshold=st.floats(0, 1e30, allow_nan=False),
    window=st.integers(0, 2**31 - 1),
    sinks=st.integers(0, 2**31 - 1),
    granularity=st.sampled_from(["element", "row"]),
    row_rule=st.sampled_from(["relative", "absolute"]),
    refresh=st.integers(0, 2**31 - 1),
    v_skip=st.floats(0, 1, exclude_max=True),
    prefill=st.sampled_from(["exact", "delta"]),
    cache_format=st.sampled_from(["float32", "float16", "int8", "int4"]),
    prefill_compute=st.sampled_from(["float32", "bfloat16", "int8"]),
)


@given(configs)
def test_json_round_trip_keeps_every_field(config: DeltaConfig) -> None:
    assert DeltaConfig.from_json(config.to_json()) == config


def test_json_names_every_field() -> None:
    fields = {f.name for f in dataclasses.fields(DeltaConfig)}
    assert set(json.loads(DeltaConfig().to_json())) == fields


def test_missing_keys_take_their_defaults() -> None:
    assert DeltaConfig.from_json('{"window": 7}') == dataclasses.replace(DeltaConfig(), window=7)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"windw": 7}', "'windw'"),
        ("[1]", "list"),
        ('{"window": 7', "not JSON"),
        ('{"threshold": -0.5}', "threshold is -0.5"),
        ('{"threshold": NaN}', "threshold is nan"),
        ('{"threshold": Infinity}', "threshold is inf"),
        ('{"threshold": "0.1"}', "threshold is '0.1'"),
        ('{"threshold": true}', "threshold is True"),
        ('{"window": -1}', "window is -1"),
        ('{"window": 1.5}', "window is 1.5"),
        ('{"window": true}', "window is True"),
        ('{"sinks": -1}', "sinks is -1"),
        ('{"refresh": -3}', "refresh is -3"),
        ('{"v_skip": 1.0}', "v_skip is 1.0"),
        ('{"granularity": "rows"}', "granularity is 'rows'"),
        ('{"granularity": ["row"]}', "granularity is ['row']"),
        ('{"row_rule": "norm"}', "row_rule is 'norm'"),
        ('{"prefill": "dense"}', "prefill is 'dense'"),
        ('{"cache_format": "int3"}', "cache_format is 'int3'"),
        ('{"window": 2147483648}', "window is 2147483648"),
        ('{"prefill_compute": "float16"}', "prefill_compute is 'float16'"),
        ('{"cache_format": "int4", "window": 5, "sinks": 2}', "sinks + window is 7: cache_format int4"),
    ],
)
def test_bad_json_is_refused_by_name_and_value(text: str, says: str) -> None:
    with pytest.raises(DeltaLLMError) as error:
        DeltaConfig.from_json(text, "here.json")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeltaLLMError, match=r"none\.json"):
        DeltaConfig.load(tmp_path / "none.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DeltaLLMError, match=r"binary\.json"):
        DeltaConfig.load(tmp_path / "binary.json")


def test_paper_profile_is_the_papers() -> None:
    paper = profile("paper", context=1000)
    assert (paper.granularity, paper.window, paper.sinks, paper.prefill, paper.cache_format) == (
        "element",
        50,
        1,
        "delta",
        "float32",
    )
    assert paper.threshold > 0


def test_exact_profile_holds_nothing() -> None:
    assert profile("exact").threshold == 0
    assert profile("exact").cache_format == "float32"


def test_balanced_is_the_default() -> None:
    assert profile("balanced") == DeltaConfig()


def test_unknown_profile_lists_the_known_ones() -> None:
    with pytest.raises(DeltaLLMError) as error:
        profile("fast")
    assert all(name in str(error.value) for name in (*PROFILE_NAMES, "fast"))


def test_replace_keeps_what_is_none() -> None:
    config = DeltaConfig().replace(window=30, sinks=None)
    assert (config.window, config.sinks) == (30, DeltaConfig().sinks)
    with pytest.raises(DeltaLLMError):
        config.replace(threshold=math.nan)
