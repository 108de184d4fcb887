"""Finished measurements on disk, one JSON line each: a study that was killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, as_completed
from pathlib import Path
from typing import Any


class Journal:
    """A file of results by what was measured.

    Args:
        path: of the file, made with the first result. Half a line, which a killed process leaves, is not read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Any] = {}
        if path.exists():
            whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
            for line in whole.splitlines():
                entry = json.loads(line)
                self._known[entry["key"]] = entry["result"]
            path.write_text(f"{whole}\n" if whole else "", encoding="utf-8")

    def find(self, key: str, measure: Callable[[], Any]) -> Any:
        """A result, measured now if it was not before."""
        if key not in self._known:
            self._add(key, measure())
        return self._known[key]

    def map(
        self, pool: Executor, measure: Callable[[Any], Any], keys: Sequence[str], items: Sequence[Any]
    ) -> list[Any]:
        """Results of all items, in their order; those that are not known yet are measured by the pool.

        Args:
            pool: of processes.
            measure: of one item, to be sent to another process.
            keys: of the items, all different.
            items: what is measured.
        """
        missing = [(key, item) for key, item in zip(keys, items, strict=True) if key not in self._known]
        running = {pool.submit(measure, item): key for key, item in missing}
        for done in as_completed(running):
            self._add(running[done], done.result())
        return [self._known[key] for key in keys]

    def _add(self, key: str, result: Any) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "result": result}, ensure_ascii=False) + "\n")
        self._known[key] = result


def key(*parts: Any) -> str:
    """A digest of all that a result depends on, JSON-ready."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
