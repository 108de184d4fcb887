"""Runs jobs of support.harness_program with the packages of build/peers/lm-eval."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support import peers

PEER = "lm-eval"


def run_jobs(jobs: Sequence[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Do all jobs in one process.

    Args:
        jobs: what to do, JSON-ready; "do" is a function of harness_program.
        folder: for scratch.

    Returns:
        For each job {"result": …} or {"refused": sentence}; any other failure is raised here.
    """
    (folder / "jobs.json").write_text(json.dumps(list(jobs), default=str))
    peers.run(PEER, "harness_program", [folder / "jobs.json", folder / "results.json"])
    results: list[dict[str, Any]] = json.loads((folder / "results.json").read_text())
    for result in results:
        assert "failed" not in result, result["failed"]
    return results
