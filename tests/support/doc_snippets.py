"""Code in Markdown files: fenced blocks by language, and commands in indented blocks."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
_CALL = re.compile(r"(?<![\w@])(\w+)\(")
_OPENING, _CLOSING = "([{", ")]}"


def fenced(page: str, language: str) -> list[str]:
    """The blocks of a language in docs/<page>."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """The commands in the indented blocks of docs/<page>, in words, comments and variable settings left out."""
    text = re.sub(r"^```.*?^```$", "", (DOCS / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
    found = []
    for line in lines.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0] != "export":
            found.append(words)
    return found


def without_comments(code: str) -> str:
    """C-like code with comments gone and the content of strings emptied."""
    code = re.sub(r'"(?:\\.|[^"\\])*"', '""', code)
    return re.sub(r"//.*|/\*.*?\*/", "", code)


def calls(code: str) -> list[tuple[str, list[str]]]:
    """Every call NAME(ARGUMENT, …) in the code: name and the text of its arguments."""
    code = without_comments(code)
    return [(match.group(1), _arguments(code, match.end())) for match in _CALL.finditer(code)]


def _arguments(code: str, begin: int) -> list[str]:
    depth, parts = 0, [""]
    for character in code[begin:]:
        if depth == 0 and character in _CLOSING:
            break
        depth += (character in _OPENING) - (character in _CLOSING)
        if depth == 0 and character == ",":
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts] if any(part.strip() for part in parts) else []


def sends(code: str) -> list[str]:
    """The selector of every message [RECEIVER PART:… PART:…] in Objective-C code, inner ones too."""
    code = without_comments(code)
    found = []
    for start, character in enumerate(code):
        # Behind @ it begins an array, behind a word or a bracket an element's key.
        if character != "[" or re.match(r"[\w@)\]]", code[start - 1 : start]):
            continue
        inside = _arguments(code, start + 1)
        message = ",".join(inside)
        flat = message
        while (shorter := re.sub(r"@?\[[^\[\]]*\]|@?\([^()]*\)", "_", flat)) != flat:
            flat = shorter
        parts = re.findall(r"(\w+):", flat)
        found.append("".join(f"{part}:" for part in parts) if parts else flat.split()[-1])
    return found
