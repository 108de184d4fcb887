"""Bad input ends a command with one sentence and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can put right; its text says what was found, where, and what to do."""


def run_command(command: Callable[[], None]) -> None:
    """Run `command`; print a `UserError` as one sentence on stderr and leave with exit code 2."""
    try:
        command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
