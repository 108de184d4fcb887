"""What was measured so far, on disk: a run that was killed goes on without measuring anything twice.

One JSON line per measurement, keyed by a digest of all that it depends on (model, windows, settings, plan). A key that
matches is therefore right whatever the run was for: another budget on the same text reuses the curves.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from deltallm_onnx.calibration.measurement import Measurement
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.plural import plural

_HEADER = {"format": "deltallm-calibration-journal", "version": 1}


def journal_path(result: Path) -> Path:
    """Where the measurements lie until the result is written: beside it."""
    return result.with_name(f"{result.name}.journal")


class Journal:
    """A file of finished measurements.

    A last line without its newline is what a killed process leaves, and is dropped; any other fault is refused.

    Args:
        path: of the file; it is made with the first measurement. None keeps the measurements in memory alone.
        resume: read what is there; False begins anew.

    Raises:
        DeltaLLMError: for a file that is no such journal, naming the line.
    """

    def __init__(self, path: Path | None, *, resume: bool = True) -> None:
        self.path = path
        self._known: dict[str, Measurement] = {}
        self._size = 0
        if path is not None and resume and path.exists():
            self._read(path)

    def __len__(self) -> int:
        """Measurements."""
        return len(self._known)

    @property
    def told(self) -> str:
        """What to say of measurements of an earlier run."""
        return f"{self.path} has {plural(len(self), 'measurement')}: those that are needed here are not repeated"

    def find(self, key: str) -> Measurement | None:
        """The measurement with this key, if it was made before."""
        return self._known.get(key)

    def add(self, key: str, measurement: Measurement) -> None:
        """Keep a measurement; it is on disk when this returns.

        Raises:
            DeltaLLMError: where the disk refuses it.
        """
        self._known[key] = measurement
        if self.path is None:
            return
        lines = [] if self._size else [json.dumps(_HEADER)]
        lines.append(json.dumps({"key": key, "measured": measurement.to_dict()}))
        data = "".join(f"{line}\n" for line in lines).encode()
        try:
            with self.path.open("r+b" if self._size else "wb") as file:
                # What stands behind the last whole line is half a line of a killed process.
                file.truncate(self._size)
                file.seek(self._size)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DeltaLLMError(f"Cannot write the journal {self.path} ({error.strerror}): free some disk.") from error
        self._size += len(data)

    def remove(self) -> None:
        """Delete the file: the result is written."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _read(self, path: Path) -> None:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DeltaLLMError(f"Cannot read the journal {path} ({error.strerror}): remove it.") from error
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                entry: Any = json.loads(line)
                if number == 1:
                    if entry != _HEADER:
                        raise ValueError("another header")  # noqa: TRY301 - one sentence for all that may be wrong
                    continue
                key, measured = entry["key"], Measurement.from_dict(entry["measured"])
                if not isinstance(key, str):
                    raise ValueError("no key")  # noqa: TRY301, TRY004 - as above
            except (ValueError, TypeError, KeyError) as error:
                raise DeltaLLMError(
                    f"Line {number} of {path} is no line of a calibration journal: remove the file, or begin anew with "
                    "--no-resume."
                ) from error
            self._known[key] = measured
        self._size = len(whole)
