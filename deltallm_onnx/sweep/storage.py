"""Where a study lies: any database that SQLAlchemy reaches. Passwords of its URL are never shown."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback

from deltallm_onnx.errors import DeltaLLMError

#: A trial whose process keeps dying is tried so many times more.
MOST_RETRIES = 3
#: Heartbeats per grace period: one that is late must not give a trial up.
_BEATS = 4
#: Seconds to wait for a server to answer, and for another process to let go of an SQLite file.
_CONNECT_SECONDS, _LOCK_SECONDS = 10, 60
#: URLs of PostgreSQL that name no driver, and the one they get.
_POSTGRESQL, _POSTGRESQL_DRIVER = ("postgresql", "postgres"), "postgresql+psycopg"
#: Module of a driver → the package that brings it, where it is not called so itself.
_PACKAGES = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
#: Tables of a new database are there after so many tries at the latest, seconds apart.
_MAKING_TRIES, _MAKING_SECONDS = 5, 1.0
_LONGEST_REASON = 300


class _Storage(RDBStorage):  # type: ignore[misc]  # optuna is not type-checked here
    """Optuna's, whose heartbeat may miss a beat: it runs in a thread of its own, where an error helps nobody."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        if self.engine.dialect.name == "sqlite":
            _lock_when_it_begins(self.engine)

    def record_heartbeat(self, trial_id: int) -> None:
        with contextlib.suppress(sa.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError):
            super().record_heartbeat(trial_id)


def _lock_when_it_begins(engine: sa.Engine) -> None:
    """Let a transaction take SQLite's lock before it reads.

    SQLite has no SELECT … FOR UPDATE, and Python's driver begins a transaction with the first change only: two
    processes would read that a trial is waiting, and both take it.
    """

    def leave_beginning_to_us(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    sa.event.listen(engine, "connect", leave_beginning_to_us)
    sa.event.listen(engine, "begin", begin)
    engine.dispose()  # the connections that made the tables


class Storage:
    """A database that holds studies.

    Args:
        url: such as sqlite:///sweep.db or postgresql://user@host/name.
        grace: seconds without a sign of life after which a running trial is given up, and tried again.

    Attributes:
        shown: the URL without its password.

    Raises:
        DeltaLLMError: for a URL that is none, an SQLite database in memory, and a grace period below two seconds.
    """

    def __init__(self, url: str, *, grace: int) -> None:
        if grace < 2:
            raise DeltaLLMError(f"grace is {grace}: give at least 2 seconds.")
        self._grace = grace
        try:
            parsed = sa.make_url(url)
        except (sa.exc.ArgumentError, ValueError):
            # The text may hold a password, and stays out of the sentence.
            raise DeltaLLMError(
                "The storage is no URL of a database: give one such as sqlite:///sweep.db or "
                "postgresql://user@host/database."
            ) from None
        if parsed.drivername in _POSTGRESQL:
            parsed = parsed.set(drivername=_POSTGRESQL_DRIVER)
        self._url = parsed
        # Options behind the question mark may hold a password too.
        self.shown = parsed.set(query={}).render_as_string(hide_password=True)
        if self._is_sqlite and parsed.database in (None, "", ":memory:"):
            raise DeltaLLMError(f"The storage {self.shown} is in memory: name a file, as in sqlite:///sweep.db.")

    def open(self) -> RDBStorage:
        """Connect, and make the tables where they are missing.

        Raises:
            DeltaLLMError: where the database cannot be reached or used.
        """
        if self._is_sqlite and not Path(str(self._url.database)).parent.is_dir():
            raise DeltaLLMError(f"The folder of the storage {self.shown} does not exist: create it or name another.")
        with self.told(), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            for _ in range(_MAKING_TRIES):
                try:
                    return self._open()
                except sa.exc.DBAPIError as error:
                    if not _is_being_made(error):
                        raise
                # Another process makes the tables at this moment.
                time.sleep(_MAKING_SECONDS)
            return self._open()

    def _open(self) -> RDBStorage:
        try:
            return _Storage(
                self._url.render_as_string(hide_password=False),
                engine_kwargs=self._engine_options,
                heartbeat_interval=max(1, self._grace // _BEATS),
                grace_period=self._grace,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=MOST_RETRIES),
            )
        except ImportError as error:
            raise DeltaLLMError(self._missing_driver(error)) from error
        except RuntimeError as error:  # Optuna's word for tables of another version
            raise DeltaLLMError(
                f"The storage {self.shown} was made by another version of Optuna than {optuna.__version__}: use that "
                "version, upgrade it by 'optuna storage upgrade', or give another storage."
            ) from error

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Turn what goes wrong with the database while the block runs into one sentence.

        Raises:
            DeltaLLMError: in place of errors of SQLAlchemy and of Optuna's storage.
        """
        try:
            yield
        except DeltaLLMError:
            raise
        except Exception as raised:
            error = _database_error(raised)
            if error is None:
                raise
            what_to_do = (
                "see that the file is an SQLite database, whole, writable and on a disk with room, or give another "
                "--storage."
                if self._is_sqlite
                else "see that it is there, and that its URL, user and password are right; finished trials are safe."
            )
            raise DeltaLLMError(
                f"The storage {self.shown} cannot be used ({self._reason(error)}): {what_to_do}"
            ) from None

    @property
    def _is_sqlite(self) -> bool:
        return self._url.get_backend_name() == "sqlite"

    @property
    def _engine_options(self) -> dict[str, Any]:
        if self._is_sqlite:
            return {"connect_args": {"timeout": _LOCK_SECONDS}}
        named = self._url.get_backend_name() in ("postgresql", "mysql", "mariadb")
        connect = {"connect_timeout": _CONNECT_SECONDS} if named else {}
        # A connection that the server closed in a long trial is opened again.
        return {"connect_args": connect, "pool_pre_ping": True}

    def _missing_driver(self, error: ImportError) -> str:
        module = error.name or self._url.get_driver_name()
        package = _PACKAGES.get(module)
        how = f"pip install '{package}'" if package else "install the package that brings it"
        return f"The storage {self.shown} needs the module {module}, which is not installed: {how}."

    def _reason(self, error: BaseException) -> str:
        """The driver's words on one line, without the password."""
        cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
        text = " ".join(str(getattr(cause, "orig", None) or cause or error).split())
        secrets = [self._url.password, *(value for value in self._url.query.values() if isinstance(value, str))]
        for secret in secrets:
            if secret:
                text = text.replace(secret, "***")
        return text[:_LONGEST_REASON]


def _database_error(raised: BaseException) -> BaseException | None:
    """What the database said; Optuna 5 trips over it while it tidies up, and raises something else."""
    error: BaseException | None = raised
    while error is not None:
        if isinstance(error, sa.exc.SQLAlchemyError | optuna.exceptions.StorageInternalError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _is_being_made(error: sa.exc.DBAPIError) -> bool:
    """Whether a table or a row is there that was missing a moment ago."""
    return isinstance(error, sa.exc.IntegrityError) or "already exists" in str(error.orig)
