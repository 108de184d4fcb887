"""Every command of `deltallm-onnx` that a page shows is there, with the options it is shown with."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main

from deltallm_onnx.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("models/*.md")])
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # a group, in every version of typer
#: Behind the program's name, up to what ends code in Markdown; a backslash continues a line.
_CALL = re.compile(r"deltallm-onnx (?:--debug )?(?P<command>[a-z][a-z-]*)(?P<rest>(?:\\\n|[^`|\n])*)")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


def options_of(command: str) -> set[str]:
    found = {"--help"}
    for parameter in COMMANDS[command].params:
        found.update(parameter.opts, parameter.secondary_opts)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_have_the_options_that_are_shown(page: Path) -> None:
    # Hub names, addresses and the package itself are no calls.
    text = re.sub(r"pip install[^\n`]*|https?://\S+", "", page.read_text(encoding="utf-8"))
    for call in _CALL.finditer(text):
        if call["command"] in COMMANDS:
            assert set(_OPTION.findall(call["rest"])) <= options_of(call["command"]), call[0]
        else:
            assert not _OPTION.search(call["rest"]), f"no such command: {call[0]}"


def test_the_tables_of_the_command_line_name_options_that_are_there() -> None:
    section, seen = "", 0
    for line in (ROOT / "docs" / "cli.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = re.split(r"[^a-z-]", line.removeprefix("## "))[0]
        if section in COMMANDS and line.startswith("| `-"):
            shown = set(_OPTION.findall(line.split(" | ")[0]))
            assert shown <= options_of(section), (section, line)
            seen += len(shown)
    assert seen > 100
