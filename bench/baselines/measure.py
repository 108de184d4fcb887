"""One measure for every method: how far predictions are from the dense model's, and what the caches cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.baselines.method import Method
from bench.baselines.model import Reading, TorchModel
from bench.baselines.plain import Plain
from bench.baselines.storage import FLOAT32
from deltallm_onnx.evaluation import score
from deltallm_onnx.evaluation.retrieval import Sample

Array = npt.NDArray[Any]

#: Parts of a window that are reported one by one.
PARTS = 4


def rounded(x: Any, digits: int = 4) -> float:
    """To significant digits: the last ones depend on the order of sums."""
    return float(f"{float(x):.{digits}g}")


class Text:
    """Windows of token ids int64 [N, S], and the dense model's logits float32 [N, S, V].

    Args:
        model: the dense model.
        windows: of the text.
    """

    def __init__(self, model: TorchModel, windows: Array) -> None:
        self._model = model
        self.windows = windows
        self.reference = np.concatenate([reading.logits for reading in model.read(windows, Plain(FLOAT32))])

    def measure(self, method: Method) -> dict[str, Any]:
        """What a method costs and gives on this text; see `measure`."""
        return measure(self._model.read(self.windows, method), self, self._model.layers)


def measure(readings: Iterable[Reading], text: Text, layers: int) -> dict[str, Any]:
    """Score readings of a text against the dense model.

    Args:
        readings: of all windows, in order.
        text: what was read.
        layers: of the model.

    Returns:
        kl: mean over all predictions of KL(dense ‖ model), in nats.
        kl_of_windows, kl_by_position: the same per window, and per quarter of a window.
        perplexity, perplexity_by_position, top1_agreement.
        kv_bytes_per_token: bytes in the caches after the last token of a window, per token and layer.
        kv_bytes_read: bytes of keys and values that a decoded token's queries read, all layers, mean over the window.
        kv_bytes_read_last: the same over the last quarter of the window.
    """
    kl, loss, agree, kept, read = [], [], [], [], []
    for reading in readings:
        for logits, reading_kept, reading_read in zip(reading.logits, reading.kept, reading.read, strict=True):
            at = len(kl)
            found = score(logits[:-1], text.windows[at, 1:], text.reference[at, :-1])
            kl.append(found.kl)
            loss.append(found.loss)
            agree.append(found.agree)
            kept.append(reading_kept[-1])
            read.append(reading_read)
    S = text.windows.shape[1]
    by_position = [np.array_split(np.array(values), PARTS, axis=1) for values in (kl, loss)]
    return {
        "kl": rounded(np.mean(kl)),
        "kl_of_windows": [rounded(values.mean()) for values in kl],
        "kl_by_position": [rounded(part.mean()) for part in by_position[0]],
        "perplexity": rounded(math.exp(np.mean(loss)), 6),
        "perplexity_by_position": [rounded(math.exp(part.mean()), 6) for part in by_position[1]],
        "top1_agreement": rounded(np.mean(agree)),
        "kv_bytes_per_token": rounded(np.mean(kept) / (S * layers), 6),
        "kv_bytes_read": rounded(np.mean(read), 6),
        "kv_bytes_read_last": rounded(np.mean([values[-(S // PARTS) :] for values in read]), 6),
    }


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Samples whose end repeats what stands further back, all of one length."""

    model: TorchModel
    samples: Sequence[Sample]

    def measure(self, method: Method) -> dict[str, float]:
        """Mean loss of what is to be retrieved, in nats per token, by depth; "None" where it is not to be found."""
        windows = np.stack([sample.tokens for sample in self.samples])
        losses: dict[float, list[float]] = {}
        readings = (logits for reading in self.model.read(windows, method) for logits in reading.logits)
        for sample, logits in zip(self.samples, readings, strict=True):
            found = score(logits[sample.first - 1 : -1], sample.tokens[sample.first :])
            losses.setdefault(sample.depth, []).append(float(found.loss.mean()))
        return {str(depth): rounded(np.mean(values)) for depth, values in losses.items()}
