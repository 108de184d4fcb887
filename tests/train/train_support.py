"""Runs the training scripts as a user would, on an invented corpus."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch

ROOT = Path(__file__).parents[2]
TRAIN = ROOT / "models" / "train"
SUBJECTS = ("The old man", "A small girl", "The captain", "My aunt", "The grey cat", "Nobody")
VERBS = ("looked at", "carried", "had forgotten", "sang to", "was afraid of", "painted")
OBJECTS = ("the lighthouse", "a silver spoon", "the garden gate", "seven letters", "the broken clock", "the sea")


def invented_book(seed: int, sentences: int) -> str:
    """Plain sentences from a small grammar: enough structure for a loss to fall quickly."""
    rng = random.Random(seed)
    lines = [f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} {rng.choice(OBJECTS)}." for _ in range(sentences)]
    return "\n\n".join(" ".join(lines[start : start + 4]) for start in range(0, sentences, 4))


def command(script: str, *arguments: object) -> list[str]:
    return [sys.executable, str(TRAIN / script), *map(str, arguments)]


def run_script(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(script, *arguments), capture_output=True, text=True, check=False, timeout=110)


@contextmanager
def torch_settings_kept() -> Iterator[None]:
    """Put back what the trainer sets for its whole process."""
    threads = torch.get_num_threads()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(mode=False)
    torch.utils.deterministic.fill_uninitialized_memory = fill


def train_here(run: Path, *arguments: object) -> None:
    """Train in this process: importing torch again for every short run would cost most of the time."""
    import train  # noqa: PLC0415  # known only once conftest has set the path

    line = ["train.py", "--out", str(run), *map(str, arguments)]
    with torch_settings_kept(), mock.patch.object(sys, "argv", line):
        train.main()


def step_losses(run: Path) -> dict[int, float]:
    """The last logged loss of every step."""
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {record["step"]: record["loss"] for record in records if record["event"] == "step"}
