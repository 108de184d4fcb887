"""The random calls reach what they are meant to reach: a property over cases that never hold a key proves nothing."""

from collections import Counter

import numpy as np
from hypothesis import HealthCheck, given, settings
from support.op_session import DELTA_ATTENTION_INPUTS
from support.random_cases import Case, cases

from deltallm_onnx.reference import STATISTICS_COLUMNS

NOT_BUILT = {"k_scale", "v_scale", "q_norm_weight", "k_norm_weight"}


def test_random_calls_cover_every_input_attribute_and_count() -> None:
    seen: Counter[str] = Counter()
    counts = np.zeros(len(STATISTICS_COLUMNS), np.int64)

    @settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=(HealthCheck.too_slow,))
    @given(cases())
    def look(case: Case) -> None:
        seen.update(list(case.inputs))
        seen.update(f"{name} = {value}" for name, value in case.attributes.items())
        rows, S = case.lengths, case.new_tokens
        seen["decode"] += S == 1
        seen["left padding"] += bool((rows.start > 0).any())
        seen["right padding"] += bool((rows.past + S > rows.length).any())
        seen["a row without tokens"] += bool((rows.length == rows.start).any())
        seen["different pasts"] += len(set(rows.past.tolist())) > 1
        seen["packed"] += "key" not in case.inputs
        seen["per channel"] += case.inputs["threshold"].ndim == 2
        seen["odd head size"] += case.inputs.get("past_key", np.zeros(2)).shape[-1] % 2
        seen["preallocated"] += "past_key" in case.inputs and case.inputs["past_key"].shape[2] > rows.total
        seen["float16 query"] += case.inputs["query"].dtype == np.float16
        counts[:] += case.expected()[3].sum(axis=0)

    look()
    wanted = set(DELTA_ATTENTION_INPUTS) - NOT_BUILT
    wanted |= {"decode", "left padding", "right padding", "a row without tokens", "different pasts", "packed"}
    wanted |= {"per channel", "odd head size", "preallocated", "float16 query"}
    wanted |= {f"granularity = {x}" for x in ("element", "row")} | {f"prefill = {x}" for x in ("exact", "delta")}
    wanted |= {f"row_rule = {x}" for x in ("relative", "absolute")} | {"cache_format = float16", "do_rotary = 1"}
    assert {name: seen[name] for name in wanted if seen[name] < 10} == {}
    shares = dict(zip(STATISTICS_COLUMNS, counts.tolist(), strict=True))
    assert 0.2 < shares["delta_zero"] / shares["delta_total"] < 0.9
    assert shares["qk_macs_skipped"] > 0.02 * shares["qk_macs_dense"]
    assert shares["pv_macs_skipped"] > 0.02 * shares["pv_macs_dense"]
