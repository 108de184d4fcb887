"""A whole study on little text: the record has what the tables read, and ours in both forms agrees."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.baselines import study, tables
from bench.baselines.budgets import CALIBRATED, DELTA, FAMILIES
from bench.baselines.journal import Journal
from bench.baselines.settings import Setting, baselines, one_threshold
from deltallm_onnx.bench import write_record

TOKENS = 150


class ThisProcess:
    """An executor for tests."""

    @staticmethod
    def submit(measure: Any, item: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(measure(item))
        return done


@contextlib.contextmanager
def pool(_workers: int) -> Iterator[type[ThisProcess]]:
    yield ThisProcess


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One setting per family, the dense one included; two plans; one window."""

    def first_of_each() -> list[Setting]:
        found: dict[str, Setting] = {}
        for setting in baselines():
            found.setdefault(setting.family, setting)
        return list(found.values())

    def with_held_rows(*arguments: Any) -> list[Setting]:
        return [setting for setting in one_threshold(*arguments) if setting.knobs["window"] == 16][3:4]

    def plans(_dense: Path) -> list[dict[str, Any]]:
        weights = study.study_of(1).weights
        return [setting.method.plan.to_dict() for setting in one_threshold(weights, 2)[1:3]]

    changes = {"TOKENS": TOKENS, "DEPTHS": (0.9,), "SAMPLES": 1, "OPERATOR_WINDOWS": 1, "CALIBRATED_KL": (0.1, 0.2)}
    for name, value in {**changes, "baselines": first_of_each, "one_threshold": with_held_rows}.items():
        monkeypatch.setattr(study, name, value)
    monkeypatch.setattr(study, "calibrations", plans)
    monkeypatch.setattr(study, "_pool", pool)
    monkeypatch.setattr(torch, "set_num_threads", lambda _count: None)  # it would stay so for other tests
    study.study_of.cache_clear()
    yield
    study.study_of.cache_clear()


@pytest.mark.usefixtures("small")
def test_a_record_is_taken_and_the_tables_read_it(tmp_path: Path) -> None:
    steps: list[str] = []
    record = study.take(1, 1, Journal(tmp_path / "study.journal"), steps.append)
    assert len(steps) == 4
    assert {row["family"] for row in record["tuned"]} == set(FAMILIES)
    assert {DELTA, CALIBRATED} <= {row["family"] for row in record["results"]}
    for row in record["results"]:
        tuned = record["tuned"][row["tuned"]]
        assert {name: tuned[name] for name in ("family", "knobs")} == {name: row[name] for name in ("family", "knobs")}
    assert record["dense"]["kl"] == 0
    # Keys and values, 2 KV heads of 64 channels, 4 bytes each.
    assert record["dense"]["kv_bytes_per_token"] == 1024
    assert len(record["operator"]) == 4
    for row in record["operator"]:
        real, oracle = row["operator"], row["oracle"]
        assert real["kv_bytes_per_token"] == pytest.approx(oracle["kv_bytes_per_token"], rel=0.01)
        assert real["kl"] == pytest.approx(oracle["kl"], rel=0.1)
        assert real["kl"] > 1e-5
    write_record(tmp_path / "baselines.json", record)
    for name, table in tables.tables(tmp_path).items():
        header, _, *lines = table().strip().split("\n")
        assert lines, name
        assert {line.count("|") for line in lines} == {header.count("|")}, name
