"""Ctrl-C, where a command has more to say of it than that it happened."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

#: 128 and the number of SIGINT, as shells count.
EXIT_INTERRUPTED = 130


class Interrupted(Exception):  # noqa: N818  # the user's wish, no error
    """The user stopped a command; the message says what is left and how to go on."""


@contextlib.contextmanager
def keeping_measurements(journal: Path | None, again: str) -> Iterator[None]:
    """Say on Ctrl-C within the block what is kept of a calibration, and how to go on.

    Args:
        journal: where its measurements lie; None where there is no calibration.
        again: how to go on from them, as the rest of a sentence.

    Raises:
        Interrupted: on Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt:
        if journal is None or not journal.exists():
            raise Interrupted("nothing was written.") from None
        raise Interrupted(f"finished measurements are in {journal}, and {again}.") from None
