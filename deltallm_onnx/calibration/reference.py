"""The dense model's predictions, computed once and compared with again and again."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx.attention_plan import LayerGeometry
from deltallm_onnx.calibration.measurement import Measurement
from deltallm_onnx.counters import COLUMNS
from deltallm_onnx.preflight import check_disk
from deltallm_onnx.runtime.model import DecoderModel

Float32 = npt.NDArray[np.float32]

#: Bytes of logits that are worked on at once: they stay in the processor's cache.
_SLICE_BYTES = 1 << 20
_KV_BYTES = 6


class Reference:
    """Log-probabilities of the dense model on windows.

    They lie in a file without a name, which is gone with this process however it ends; what is read often stays in
    memory by itself.

    Args:
        windows: token ids [N, S], S ≥ 2.
        folder: where the file grows.

    Attributes:
        windows: as given.
        seconds: wall time of the dense model's calls.
    """

    def __init__(self, windows: npt.NDArray[np.int64], folder: Path) -> None:
        self.windows = windows
        self._folder = folder
        self._log_p: Any = None
        self._loss = np.zeros(len(windows))
        self.seconds = 0.0

    def fill(self, model: DecoderModel, on_window: Callable[[], None]) -> None:
        """Read all windows with the dense model.

        Args:
            model: the dense one.
            on_window: called after each.

        Raises:
            DeltaLLMError: where the disk has no room, and where the model cannot be run.
        """
        N, S = self.windows.shape
        for number, window in enumerate(self.windows):
            cache = model.new_cache(limit=S)
            began = time.perf_counter()
            logits = model.step(window[None], cache)[0][0, :-1]
            self.seconds += time.perf_counter() - began
            if self._log_p is None:
                shape = (N, *logits.shape)
                check_disk(self._folder, 4 * int(np.prod(shape)), "The dense model's predictions on the text")
                file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - the map keeps it open
                self._log_p = np.memmap(file, np.float32, "w+", shape=shape)
            self._log_p[number] = _log_softmax(logits)
            self._loss[number] = -self._log_p[number][np.arange(S - 1), window[1:]].mean(dtype=np.float64)
            on_window()

    def dense(self, geometry: Sequence[LayerGeometry]) -> Measurement:
        """What the dense model itself scores, with float32 caches of that geometry."""
        N, S = self.windows.shape
        statistics = []
        for layer in geometry:
            counts = np.zeros((layer.kv_num_heads, COLUMNS), np.int64)
            counts[:, _KV_BYTES] = 2 * 4 * layer.head_size * N * S
            statistics.append(counts)
        return Measurement(np.zeros(N), self._loss, tuple(statistics), S, self.seconds)

    def loss(self, count: int) -> npt.NDArray[np.float64]:
        """The dense model's mean negative log-likelihood in each of the first `count` windows."""
        return self._loss[:count].copy()

    def score(self, number: int, logits: Float32) -> tuple[float, float]:
        """Compare another model's predictions of one window.

        Args:
            number: of the window.
            logits: float32 [S, V].

        Returns:
            Mean KL(dense ‖ model) and mean negative log-likelihood of the S − 1 predictions, in nats per token.
        """
        targets = self.windows[number, 1:]
        divergence = loss = 0.0
        for rows in _slices(len(targets), logits.shape[1]):
            log_p, log_q = self._log_p[number, rows], _log_softmax(logits[:-1][rows])
            divergence += float(np.einsum("tv,tv->t", np.exp(log_p), log_p - log_q).sum(dtype=np.float64))
            loss -= float(log_q[np.arange(len(log_q)), targets[rows]].sum(dtype=np.float64))
        return divergence / len(targets), loss / len(targets)


def _log_softmax(logits: Float32) -> Float32:
    """Float32: half the time of float64. A difference of two such log-probabilities is off by about 1e-7."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return np.asarray(shifted)


def _slices(rows: int, columns: int) -> Iterator[slice]:
    size = max(1, _SLICE_BYTES // (4 * columns))
    for first in range(0, rows, size):
        yield slice(first, min(first + size, rows))
