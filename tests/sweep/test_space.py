"""What is searched, and what for."""

from __future__ import annotations

import itertools

import optuna
import pytest

from deltallm_onnx import DeltaConfig, DeltaLLMError
from deltallm_onnx.sweep.objectives import find_objectives, values
from deltallm_onnx.sweep.request import space_for
from deltallm_onnx.sweep.space import Candidate, Space, rules_of


def test_quality_is_always_the_first_objective() -> None:
    assert [o.name for o in find_objectives(())] == ["kl", "kv_bytes_per_token"]
    assert [o.name for o in find_objectives(("attn_mac_sparsity", "kl"), time=True)] == [
        "kl",
        "attn_mac_sparsity",
        "decode_time",
    ]
    assert [o.direction for o in find_objectives(("attn_mac_sparsity",))] == ["minimize", "maximize"]
    numbers = {"kv_bytes_per_token": 3.0, "seconds": 9.0, "kl": 0.5}
    assert values(find_objectives(()), numbers) == (0.5, 3.0)


@pytest.mark.parametrize("names", [("kl",), ("speed",), ("kv_bytes_per_token", "sparsity")])
def test_objectives_that_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(DeltaLLMError, match="objective"):
        find_objectives(names)


def test_what_no_objective_rewards_is_not_searched_unless_it_is_named() -> None:
    by_bytes = space_for(find_objectives(()))
    assert by_bytes.rules == ("row query",)
    assert by_bytes.v_skips == (0.0,)
    by_products = space_for(find_objectives(("attn_mac_sparsity",)))
    assert by_products.rules == ("row query", "element query")
    assert len(by_products.v_skips) > 1
    assert space_for(find_objectives(("delta_sparsity",))).v_skips == (0.0,)
    assert len(space_for(find_objectives((), time=True)).v_skips) > 1
    named = space_for(find_objectives(()), granularities=("element",), rules=("sigma", "query"), v_skips=(0.2, 0.0))
    assert named.rules == ("element sigma", "element query")
    assert named.v_skips == (0.2, 0.0)


@pytest.mark.parametrize(
    ("tokens", "sinks", "windows"),
    [
        (None, (), (16, 32, 64, 128, 256)),
        (262, (), (16, 32, 64, 128, 256)),
        (261, (), (16, 32, 64, 128)),
        (256, (), (16, 32, 64, 128)),
        (256, (2, 127), (16, 32, 64)),
        (9, (), (16,)),
    ],
)
def test_usual_windows_leave_keys_to_hold(tokens: int | None, sinks: tuple[int, ...], windows: tuple[int, ...]) -> None:
    """Sinks are 4 at most where nothing is said; a token more is read, and one must be left behind the window."""
    assert space_for(find_objectives(()), text_tokens=tokens, sinks=sinks).windows == windows
    assert space_for(find_objectives(()), text_tokens=tokens, windows=(300, 8), sinks=sinks or (1,)).windows == (300, 8)


def test_candidates_that_differ_in_their_thresholds_only_have_other_names() -> None:
    low, high, none = (Candidate("row query", spend, 16, 4, 0.0, "int8").label for spend in (0.4641, 0.731, 0.0))
    assert low == "row query, spend 0.464, int8, window 16, sinks 4"
    assert high == "row query, spend 0.731, int8, window 16, sinks 4"
    assert none == "nothing held, int8, window 16, sinks 4"


def test_a_rule_is_taken_where_a_granularity_has_it() -> None:
    assert rules_of(("row", "element"), ("absolute", "query")) == ("row absolute", "row query", "element query")


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        ({"granularities": ("column",)}, "granularity is 'column'"),
        ({"rules": ("sigma",)}, "no rule 'sigma' with granularity row"),
        ({"cache_formats": ("int3",)}, "cache_format is 'int3'"),
        ({"windows": (64, 5), "sinks": (2,)}, "keeps at least 8"),
        ({"v_skips": (1.0,)}, "v_skip is 1"),
        ({"sinks": (-1,)}, "sinks is -1"),
    ],
)
def test_spaces_that_are_refused(choices: dict[str, tuple[object, ...]], sentence: str) -> None:
    with pytest.raises(DeltaLLMError, match=sentence):
        space_for(find_objectives(()), **choices)


SPACE = Space(("row query", "row relative"), (8, 100, 200), (1, 3), (0.0, 1e-3), ("float16", "int8"), largest_kl=0.08)


def test_a_candidate_is_what_its_parameters_suggest() -> None:
    """Every corner of the space, and a point within."""
    for rule, window, sinks, v_skip, cache_format in itertools.product(
        SPACE.rules, SPACE.windows, SPACE.sinks, SPACE.v_skips, SPACE.cache_formats
    ):
        for spend in (0.0, 0.3, 1.0):
            candidate = Candidate(rule, spend, window, sinks, v_skip, cache_format)
            assert SPACE.suggest(optuna.trial.FixedTrial(SPACE.parameters(candidate))) == candidate


def test_a_setting_with_one_choice_is_no_parameter() -> None:
    space = Space(("row query",), (8,), (1,), (0.0,), ("int8",))
    candidate = Candidate("row query", 0.5, 8, 1, 0.0, "int8")
    assert space.parameters(candidate) == {"spend": 0.5}
    assert space.suggest(optuna.trial.FixedTrial({"spend": 0.5})) == candidate


def test_a_study_begins_with_every_cache_format_and_with_what_convert_does() -> None:
    *exact, usual = SPACE.first()
    assert [(c.cache_format, c.spend) for c in exact] == [("float16", 0.0), ("int8", 0.0)]
    assert {(c.window, c.sinks, c.v_skip) for c in [*exact, usual]} == {(100, 3, 0.0)}  # nearest to 128 and 4
    assert usual.cache_format == DeltaConfig().cache_format
    assert SPACE.predicted_kl(usual) == pytest.approx(0.01 / 1.15)
    assert SPACE.predicted_kl(exact[0]) == 0
    full = Candidate("row query", 1.0, 8, 1, 0.0, "int8")
    assert SPACE.predicted_kl(full) == 0.08


def test_a_candidate_is_a_configuration() -> None:
    config = Candidate("row relative", 0.5, 100, 3, 1e-3, "float16").config()
    assert (config.granularity, config.row_rule, config.window, config.sinks) == ("row", "relative", 100, 3)
    assert (config.v_skip, config.cache_format) == (1e-3, "float16")
    assert Candidate("element sigma", 0.5, 9, 1, 0.0, "int4").config().granularity == "element"
