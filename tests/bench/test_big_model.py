"""The benchmark of big models, on a small one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import big_model
from bench.tables import RECORDS
from deltallm_onnx.preflight import BESIDE_WEIGHTS


def test_every_step_is_measured_in_a_process_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["--folder", str(tmp_path / "models"), "--record", str(tmp_path)]
    big_model.main(["--config", "toy", "--weights", "int4", *folders])
    record = json.loads((tmp_path / "big-model-toy.json").read_text())
    export, coded = record["results"]
    assert [export["name"], coded["name"]] == [big_model.EXPORT, "convert, int4 weights"]
    # 2 layers: queries and output 96×96, keys and values 48×96, an MLP of 3·96·200; 5 norms; tied embeddings.
    parameters = 2 * (2 * 96 * 96 + 2 * 48 * 96 + 3 * 96 * 200) + 5 * 96 + 501 * 96
    assert export["float32_bytes"] == coded["float32_bytes"] == 4 * parameters
    # norms of ones are stored once
    assert export["data_bytes"] >= 0.99 * 4 * parameters > 5 * coded["data_bytes"]
    assert export["relative_rms"] is None
    assert 0.05 < coded["relative_rms"] < 0.12
    assert all(0 < row["peak_resident_bytes"] < BESIDE_WEIGHTS + 4 * parameters for row in record["results"])
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["toy"]
    assert "int4 weights" in capsys.readouterr().out


def test_the_records_keep_the_promises() -> None:
    """Memory as docs/cli.md and the preflight say, honestly estimated; time as a conversion should take."""
    for path in RECORDS.glob("big-model-*.json"):
        record = json.loads(path.read_text())
        export = min(row["seconds"] for row in record["results"] if row["name"] == big_model.EXPORT)
        for row in record["results"]:
            promised = row["float32_bytes"] + record["promised_bytes_beside_weights"]
            assert row["float32_bytes"] > 4e9, path
            assert row["peak_resident_bytes"] <= promised <= 1.3 * row["peak_resident_bytes"], (path, row)
        for name in {row["name"] for row in record["results"]}:
            fastest = min(row["seconds"] for row in record["results"] if row["name"] == name)
            assert fastest < 1.5 * export, (path, name)


def test_wrong_options_end_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--rounds", "0"], ["--record", str(tmp_path / "missing")]):
        with pytest.raises(SystemExit) as left:
            big_model.main(["--config", "toy", "--folder", str(tmp_path), *arguments])
        assert left.value.code == 2
        assert capsys.readouterr().err.startswith("error: ")
    assert not list(tmp_path.iterdir())
