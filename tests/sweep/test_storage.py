"""Databases by URL: what is shown of them, and what is refused."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.storages._rdb.models import TrialModel

from deltallm_onnx import DeltaLLMError
from deltallm_onnx.sweep.storage import Storage

SECRET = "s3cr3t"  # noqa: S105  # what must not be shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"postgresql://me:{SECRET}@host:5433/db", "postgresql+psycopg://me:***@host:5433/db"),
        (f"postgres://me:{SECRET}@host/db", "postgresql+psycopg://me:***@host/db"),
        (f"postgresql+psycopg2://me@host/db?password={SECRET}", "postgresql+psycopg2://me@host/db"),
        (f"mysql+pymysql://me:{SECRET}@host/db", "mysql+pymysql://me:***@host/db"),
        ("sqlite:///some.db", "sqlite:///some.db"),
    ],
)
def test_a_password_is_never_shown(url: str, shown: str) -> None:
    assert Storage(url, grace=60).shown == shown


def test_nor_is_it_in_the_words_of_a_driver() -> None:
    storage = Storage(f"mysql+pymysql://me:{SECRET}@host/db?ssl_key={SECRET}key", grace=60)
    error = sa.exc.OperationalError("select", {}, Exception(f"no route\nwith {SECRET} and {SECRET}key"))
    with pytest.raises(DeltaLLMError, match=r"no route with \*\*\* and") as refusal, storage.told():
        raise error
    assert SECRET not in str(refusal.value)


def test_a_database_that_goes_away_in_a_trial_is_one_sentence(tmp_path: Path) -> None:
    """Optuna then raises an error of its own making, with the database's behind it."""
    storage = Storage(f"sqlite:///{tmp_path}/s.db", grace=60)
    study = optuna.create_study(storage=storage.open())

    def objective(trial: optuna.Trial) -> float:
        del trial
        (tmp_path / "s.db").write_bytes(b"")
        return 1.0

    with pytest.raises(DeltaLLMError, match=r"s.db cannot be used \(.*: see that the file is"), storage.told():
        study.optimize(objective, n_trials=1)


def test_other_errors_pass(tmp_path: Path) -> None:
    storage = Storage(f"sqlite:///{tmp_path}/s.db", grace=60)
    for error in (ValueError("a bug"), DeltaLLMError("a refusal"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as raised, storage.told():
            raise error
        assert raised.value is error


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        (f"no url {SECRET}", "is no URL of a database"),
        (f"http//me:{SECRET}@host", "is no URL of a database"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
    ],
)
def test_what_is_no_database_is_refused(url: str, sentence: str) -> None:
    with pytest.raises(DeltaLLMError, match=sentence) as refusal:
        Storage(url, grace=60)
    assert SECRET not in str(refusal.value)


def test_a_grace_period_is_long_enough_for_a_heartbeat() -> None:
    with pytest.raises(DeltaLLMError, match="grace is 1"):
        Storage("sqlite:///some.db", grace=1)


def test_what_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database, but long enough to be looked at " * 10)
    for url, sentence in (
        (f"sqlite:///{tmp_path}/none/x.db", "does not exist: create it"),
        (f"sqlite:///{tmp_path}/text.db", "file is not a database"),
        (f"nosuchdb://me:{SECRET}@host/db", "cannot be used .*nosuchdb"),
        (
            f"oracle+oracledb://me:{SECRET}@host/db",
            "needs the module oracledb, which is not installed: install the package",
        ),
    ):
        with pytest.raises(DeltaLLMError, match=sentence) as refusal:
            Storage(url, grace=60).open()
        assert SECRET not in str(refusal.value)


@pytest.mark.parametrize(
    ("driver", "module", "package"),
    [("", "psycopg", "psycopg[binary]"), ("+psycopg2", "psycopg2", "psycopg2-binary")],
)
def test_the_driver_that_a_url_names_is_the_one_to_install(
    monkeypatch: pytest.MonkeyPatch, driver: str, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DeltaLLMError) as refusal:
        Storage(f"postgresql{driver}://me:{SECRET}@host/db", grace=60).open()
    assert str(refusal.value).endswith(f"needs the module {module}, which is not installed: pip install '{package}'.")


def test_a_damaged_file_is_told_as_a_file(tmp_path: Path) -> None:
    """It has no user and no password, and nobody knows what is left in it."""
    path = tmp_path / "torn.db"
    Storage(f"sqlite:///{path}", grace=60).open()
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + bytes(len(whole) - 4096))
    with pytest.raises(DeltaLLMError, match="see that the file is an SQLite database") as refusal:
        Storage(f"sqlite:///{path}", grace=60).open()
    assert "password" not in str(refusal.value)
    assert "safe" not in str(refusal.value)


def test_tables_of_another_version_are_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/old.db"
    Storage(url, grace=60).open()
    with sa.create_engine(url).begin() as connection:
        connection.execute(sa.text("update alembic_version set version_num = 'v0.9.0.a'"))
    with pytest.raises(DeltaLLMError, match="another version of Optuna"):
        Storage(url, grace=60).open()


def test_processes_that_open_a_new_database_at_once_all_get_it(tmp_path: Path) -> None:
    """One of them makes the tables while the others look for them."""
    program = f"""
import time
from pathlib import Path
from deltallm_onnx.sweep.storage import Storage
storage = Storage("sqlite:///{tmp_path}/new.db", grace=60)
while not Path("{tmp_path}/go").exists():
    Path("{tmp_path}/ready").open("a").write("x")
    time.sleep(0.01)
storage.open().get_all_studies()
"""
    processes = [subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) for _ in range(3)]
    (tmp_path / "go").touch()
    for process in processes:
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_a_waiting_trial_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two who look at it at the same moment; neither changes anything before both had the time to look."""
    url = f"sqlite:///{tmp_path}/s.db"
    studies = [optuna.create_study(study_name="s", storage=Storage(url, grace=60).open(), load_if_exists=True)]
    studies.append(optuna.load_study(study_name="s", storage=Storage(url, grace=60).open()))
    for number in range(3):
        studies[0].enqueue_trial({"x": number})
    look = TrialModel.find_or_raise_by_id.__func__

    def slowly(cls: type[TrialModel], *arguments: Any, **options: Any) -> TrialModel:
        found: TrialModel = look(cls, *arguments, **options)
        time.sleep(0.3)
        return found

    monkeypatch.setattr(TrialModel, "find_or_raise_by_id", classmethod(slowly))
    with ThreadPoolExecutor(2) as pool:
        taken = list(pool.map(lambda study: study.ask().number, studies))
    assert sorted(taken) == [0, 1]
