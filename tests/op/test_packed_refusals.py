"""Packed caches that cannot be right, rewinds that cannot be done and inputs that do not fit: one sentence each."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from support.op_session import delta_attention_model, run_delta_attention, session
from support.packed_cases import PackedCase, PackedRun, assert_same_bytes, run_operator, run_oracle

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.reference import delta_attention
from deltallm_onnx.reference.packed_slab import Slab

MERGING = PackedCase(tokens=60, kv_heads=2, theta=0.4)
SINGLE = MERGING.replace(local_window=100)
SEALED = SINGLE.replace(cache_format="int4", tokens=190)


def next_feeds(case: PackedCase, run: PackedRun, past_tokens: int) -> dict[str, Any]:
    """One more token behind the first `past_tokens`; the mask tells."""
    feeds = case.feeds(past_tokens - 1, past_tokens)
    feeds["attention_mask"] = np.ones((1, past_tokens + 1), np.int64)
    return {**feeds, "past_key": run.key, "past_value": run.value}


def refused_by_both(case: PackedCase, feeds: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DeltaLLMError):
        delta_attention(**feeds, **case.attributes)
    with pytest.raises(Exception, match=re.escape(sentence)):
        run_delta_attention(feeds, **case.attributes)


def with_tags(case: PackedCase, run: PackedRun, tags: dict[int, int]) -> np.ndarray:
    """The value cache with some tags of KV head 1 changed."""
    value = run.value.copy()
    slab = Slab(value[0, 1], case.layout, is_key=False)
    for slot, tag in tags.items():
        slab.write_tag(slot, tag)
    return value


BAD_TAGS = {
    "no cache": (SINGLE, {0: 0}, "The past of batch row 0, KV head 1 begins with the mark 0x0, not 0xd801 of an int8"),
    "of the other format": (SINGLE, {0: 0xD401}, "the mark 0xd401, not 0xd801"),
    "of another version": (SEALED, {0: 0xD402}, "the mark 0xd402, not 0xd401 of an int4"),
    "other window": (SINGLE, {5: 3}, "was written with other sinks or another delta_window than 2 and 9"),
    "more rows than fit": (SINGLE, {2: 1, 4: 1}, "more than its 60 rows can hold"),
    "as many rows as a number can say": (SEALED, {2: 0xFFFF, 4: 0xFFFF}, "coded rows, more than its"),
    "rows without tokens": (SINGLE, {1: 7}, "7 coded tokens in 49 rows"),
    "more rows than tokens": (MERGING, {1: 1}, "1 coded tokens in"),
    "too few tokens": (MERGING, {1: 48}, "has 48 coded tokens, but a past of 60 tokens has at least 49"),
}


@pytest.mark.parametrize("name", BAD_TAGS)
def test_a_header_that_cannot_be_right_is_refused(name: str) -> None:
    case, tags, sentence = BAD_TAGS[name]
    run = run_oracle(case, [case.tokens])
    feeds = next_feeds(case, run, case.tokens)
    feeds["past_value"] = with_tags(case, run, tags)
    refused_by_both(case, feeds, sentence)


@pytest.mark.parametrize("cache_format", ["int8", "int4"])
def test_any_bytes_are_answered_or_refused(cache_format: str) -> None:
    """Random bytes behind a header that may be right: nothing is read outside the buffers, whatever the counts say."""
    case = SINGLE.replace(cache_format=cache_format, tokens=190 if cache_format == "int4" else 60)
    run = run_oracle(case, [case.tokens])
    rng = np.random.default_rng(5)
    model = session(delta_attention_model(next_feeds(case, run, case.tokens), **case.attributes))
    answered = 0
    for trial in range(60):
        feeds = next_feeds(case, run, int(rng.integers(1, case.tokens + 1)))
        for name in ("past_key", "past_value"):
            spoiled = feeds[name].copy()
            place = rng.random(spoiled.shape) < rng.choice([0.001, 0.1, 1.0])
            spoiled[place] = rng.integers(0, 256, int(place.sum()))
            feeds[name] = spoiled
        if trial % 2:
            feeds["past_value"] = with_tags(case, run, {int(rng.integers(0, 6)): int(rng.integers(0, 65536))})
        answered += is_answered(model, feeds)
    assert 0 < answered < 60


def is_answered(model: ort.InferenceSession, feeds: dict[str, Any]) -> bool:
    """Whether a call gives something; a refusal must speak of the past."""
    try:
        model.run(None, feeds)
    except Exception as error:  # onnxruntime's exceptions share no base class
        if "The past of batch row" not in str(error):
            raise
        return False
    return True


REWINDS = {
    "merged": (MERGING, 40, "is rewound to 40 tokens, but 51 of them are merged into runs"),
    "sealed": (SEALED, 130, "is rewound to 130 tokens, but"),
}


@pytest.mark.parametrize("name", REWINDS)
def test_a_rewind_that_cannot_be_done_is_refused(name: str) -> None:
    case, kept, sentence = REWINDS[name]
    refused_by_both(case, next_feeds(case, run_oracle(case, [case.tokens]), kept), sentence)


@pytest.mark.parametrize(
    ("case", "kept"),
    [
        (MERGING, 51),
        (MERGING.replace(cache_format="int4", tokens=230, theta=0.1), 230 - 9),
        (SINGLE, 1),
        (SINGLE, 30),
        (SINGLE.replace(granularity="element"), 17),
        (SEALED, 131),
    ],
    ids=["merged within", "int4 within", "to one token", "coded", "element", "behind a block"],
)
def test_a_rewind_goes_on_as_the_oracle_does(case: PackedCase, kept: int) -> None:
    case = case.replace(spare=0)
    before = run_operator(case, [case.tokens])
    feeds = {**case.feeds(kept, case.tokens), "past_key": before.key, "past_value": before.value}
    found = run_delta_attention(feeds, **case.attributes)
    expected = delta_attention(**feeds, **case.attributes)
    runs = [PackedRun(*result[:3], [result[3]]) for result in (found, expected)]
    assert_same_bytes(case, *runs)
    np.testing.assert_array_equal(runs[0].statistics[0], runs[1].statistics[0])
    bound = np.abs(case.sequence()["value"]).max() * (2e-3 if case.cache_format == "int8" else 5e-2)
    np.testing.assert_allclose(runs[0].output, runs[1].output, rtol=0, atol=bound)


def changed(case: PackedCase = SINGLE, **changes: Any) -> dict[str, Any]:
    feeds = next_feeds(case, run_oracle(case, [case.tokens]), case.tokens)
    for name, change in changes.items():
        feeds[name] = change(feeds[name])
    return feeds


def test_pasts_of_another_shape_or_length_are_refused() -> None:
    narrower = {name: lambda x: np.ascontiguousarray(x[..., :-4]) for name in ("past_key", "past_value")}
    refused_by_both(SINGLE, changed(**narrower), "past_key has shape [1, 2, 60, 20]: give")
    shorter = {name: lambda x: np.ascontiguousarray(x[:, :, :59]) for name in ("past_key", "past_value")}
    refused_by_both(SINGLE, changed(**shorter), "60 past tokens")
    rows = SEALED.layout.rows_needed(190) - 1
    shorter = {name: lambda x: np.ascontiguousarray(x[:, :, :rows]) for name in ("past_key", "past_value")}
    refused_by_both(SEALED, changed(SEALED, **shorter), f"190 past tokens, which need {rows + 1} rows of an int4 cache")
    uneven = {"past_value": lambda x: np.concatenate([x, x[:, :, :1]], axis=2)}
    refused_by_both(SINGLE, changed(**uneven), "past_key has 60 rows and past_value 61")


def test_pasts_of_another_type_are_refused() -> None:
    feeds = changed(past_key=lambda x: x.astype(np.float32), past_value=lambda x: x.astype(np.float32))
    refused_by_both(SINGLE, feeds, 'past_key is of type float32, but cache_format is "int8": give uint8.')
    with pytest.raises(Exception, match="past_key is of type uint8, but cache_format is"):
        run_delta_attention(changed(), **{**SINGLE.attributes, "cache_format": "float16"})


def test_int4_without_a_length_is_refused_and_int8_is_not() -> None:
    for case, sentence in ((SINGLE, ""), (SEALED, "give seqlens_k or attention_mask")):
        feeds = changed(case)
        del feeds["attention_mask"]
        if sentence:
            refused_by_both(case, feeds, sentence)
            continue
        found, expected = run_delta_attention(feeds, **case.attributes), delta_attention(**feeds, **case.attributes)
        runs = [PackedRun(*result[:3], []) for result in (found, expected)]
        assert_same_bytes(case.replace(tokens=61), *runs)


def test_a_refused_call_leaves_shared_buffers_alone() -> None:
    run = run_oracle(MERGING, [60])
    feeds = next_feeds(MERGING, run, 40)
    model = session(delta_attention_model(feeds, statistics=False, **MERGING.attributes))
    binding = model.io_binding()
    caches = {name: ort.OrtValue.ortvalue_from_numpy(feeds[f"past_{name}"].copy()) for name in ("key", "value")}
    for name, array in feeds.items():
        if not name.startswith("past_"):
            binding.bind_cpu_input(name, array)
    for name, cache in caches.items():
        binding.bind_ortvalue_input(f"past_{name}", cache)
        binding.bind_ortvalue_output(f"present_{name}", cache)
    binding.bind_output("output")
    with pytest.raises(Exception, match="merged into runs"):
        model.run_with_iobinding(binding)
    np.testing.assert_array_equal(caches["key"].numpy(), run.key)
    np.testing.assert_array_equal(caches["value"].numpy(), run.value)


def test_a_head_size_beyond_the_kernels_is_refused() -> None:
    case = PackedCase(head_size=1300, kv_heads=1, group=1, tokens=3)
    with pytest.raises(Exception, match=r'The head size is 1300, but cache_format "int8" takes at most \d+'):
        run_operator(case, [3])
