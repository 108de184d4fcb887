"""What a calibration will take, for people."""

from __future__ import annotations

from deltallm_onnx.plural import plural


def bill(reads: int, seconds: float) -> str:
    """One line.

    Args:
        reads: windows of text, at most.
        seconds: that these may take.
    """
    return f"at most {reads} readings of a window of text from here, up to {duration(seconds)}"


def duration(seconds: float) -> str:
    """In the unit that suits it."""
    if seconds < 90:
        return plural(max(1, round(seconds)), "second")
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
