"""--baseline of `eval` and `report`: a dense .onnx, or the model directory that it is traced from."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from deltallm_onnx.cli.output import status


@contextlib.contextmanager
def dense_baseline(given: Path | None) -> Iterator[Path | None]:
    """The .onnx file of a baseline, while the block runs.

    Args:
        given: an .onnx file, a folder with one, a Hugging Face model directory, or None. The latter is traced into the
            system's temporary folder, with float32 weights.

    Raises:
        DeltaLLMError: for a folder that holds no such model, and where it cannot be traced.
    """
    if given is None or not given.is_dir():
        yield given
        return
    from deltallm_onnx.calibration.source import opened_model  # noqa: PLC0415  # lazily: the passes take a while

    with contextlib.ExitStack() as stack:
        with status(f"Opening {given} …", lines=True) as show:  # away before another bar is shown
            model = stack.enter_context(opened_model(str(given), Path(tempfile.gettempdir()), show))
        yield model.dense
