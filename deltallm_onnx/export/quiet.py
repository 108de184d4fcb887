"""Keep torch's and transformers' noise from the user, and turn their errors into half a sentence."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout


def first_line(error: BaseException) -> str:
    """What an error says, shortened, without a full stop: its first line, and the next if that one ends in ":"."""
    lines = [line.strip() for line in f"{type(error).__name__}: {error}".splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return text[:300].rstrip(".: ")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's and transformers' warnings, log lines, progress bars and printed graphs to themselves."""
    from huggingface_hub.utils.tqdm import (  # noqa: PLC0415 - part of the export extra
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from transformers.utils import logging as transformers_logging  # noqa: PLC0415 - the same

    disabled = logging.root.manager.disable
    hub_bars, bars = not are_progress_bars_disabled(), transformers_logging.is_progress_bar_enabled()
    logging.disable(logging.ERROR)
    disable_progress_bars()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        if hub_bars:
            enable_progress_bars()
        if bars:
            transformers_logging.enable_progress_bar()
