"""What typer says of wrong arguments, in our words."""

from __future__ import annotations

import re
from collections.abc import Sequence

_BAD_VALUE = re.compile(r"Invalid value for '(?:-\w / )?--(?P<option>[\w-]+)'.*?: (?P<reason>.*)")
#: Words of typer's reasons: pydantic's in some versions, click's in others.
_KINDS = {"integer": "a whole number", "number": "a number", "float": "a number"}


def usage_sentence(message: str, arguments: Sequence[str]) -> str:
    """One sentence that names a number's option and value; other messages as they are.

    Args:
        message: of a usage error.
        arguments: of the program.
    """
    found = _BAD_VALUE.match(message)
    if found is None:
        return message
    wanted = next((kind for word, kind in _KINDS.items() if word in found["reason"]), None)
    value = _value(f"--{found['option']}", arguments)
    if wanted is None or value is None:
        return message
    return f"{found['option']} is {value!r}: give {wanted}."


def _value(option: str, arguments: Sequence[str]) -> str | None:
    """What was given for an option, the last time if there are several."""
    for index in reversed(range(len(arguments))):
        if arguments[index].startswith(f"{option}="):
            return arguments[index].removeprefix(f"{option}=")
        if arguments[index] == option and index + 1 < len(arguments):
            return arguments[index + 1]
    return None
