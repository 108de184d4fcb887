"""Packages of `deltallm-onnx package`: what is packaged, and what their README.md says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from deltallm_onnx.config import DeltaConfig

#: Half of a text of 48 tokens lies behind the window, where keys are held.
CONFIG = DeltaConfig(threshold=0.8, window=20, sinks=4, prefill="delta", cache_format="int8")


def readme(package: Path) -> str:
    return (package / "README.md").read_text(encoding="utf-8")


def readme_blocks(package: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", readme(package), re.MULTILINE | re.DOTALL)


def runner_line(package: Path) -> list[str]:
    """The command for the C++ runner, in words."""
    (line,) = re.findall(r"^    (\./deltallm_run .*)$", readme(package), re.MULTILINE)
    return shlex.split(line)


def prompt_of(command: list[str]) -> list[int]:
    """The token ids in such a command."""
    return [int(token) for token in command[command.index("--tokens") + 1].split(",")]


def files_of(package: Path) -> set[str]:
    """Everything in it, relative to it."""
    return {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
