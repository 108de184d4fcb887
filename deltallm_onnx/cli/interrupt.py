"""Ctrl-C, where a command has more to say of it than that it happened."""

from __future__ import annotations

#: 128 and the number of SIGINT, as shells count.
EXIT_INTERRUPTED = 130


class Interrupted(Exception):  # noqa: N818  # the user's wish, no error
    """The user stopped a command; the message says what is left and how to go on."""
