"""The one exception a user's mistake ends in: one clear sentence, exit code 2, no traceback."""

from __future__ import annotations


class DeltaLLMError(Exception):
    """A refusal. Its text says what was found, where, and what to do about it.

    Library callers may catch it; the command line prints it to stderr and exits with code 2.
    """
