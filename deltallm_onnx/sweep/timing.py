"""Decode time of a candidate, over that of the dense model: the written model, on this machine, the two in turns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from deltallm_onnx.attention_plan import AttentionPlan
from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.convert import rewrite
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.evaluation.speed import STEPS, WARM_UP_STEPS, decode_speed
from deltallm_onnx.runtime.model import DecoderModel
from deltallm_onnx.scratch_folder import scratch_folder

#: Tokens in the cache before the timed steps, where nothing is said and the context has room.
PAST_TOKENS = 1024


class DecodeTimer:
    """Times candidates behind a prompt.

    Args:
        dense: the .onnx file.
        tokens: of the text, int64 [N]; taken again from the front where they are too few.
        past: tokens in the cache before the first timed step; None takes PAST_TOKENS, or what the context has room for.
        context: the model's context length in tokens, if known.
        folder: for the rewritten models, one at a time.
        threads: intra-op threads; None leaves the choice to ONNX Runtime.

    Attributes:
        past: tokens in the cache before the first timed step.

    Raises:
        DeltaLLMError: for a past that the context has no room for, and where the model cannot be run.
    """

    def __init__(
        self,
        dense: Path,
        tokens: npt.NDArray[np.int64],
        *,
        past: int | None,
        context: int | None,
        folder: Path,
        threads: int | None,
    ) -> None:
        self.past = past_tokens(past, context)
        self._window = np.resize(tokens, self.past + STEPS).astype(np.int64)
        self._dense, self._folder, self._threads = dense, folder, threads
        self._baseline = DecoderModel(dense, threads=threads)

    def measure(self, config: DeltaConfig, plan: AttentionPlan) -> dict[str, float]:
        """Decode steps with a plan.

        Args:
            config: global settings.
            plan: of all layers.

        Returns:
            Medians: decode_time, the plan's over the dense model's, and both in seconds.

        Raises:
            DeltaLLMError: where the model cannot be written or run.
        """
        with scratch_folder(self._folder, "sweep") as folder:
            path = folder / "candidate.onnx"
            rewrite(self._dense, path, config, plan=plan, statistics=False)
            models = {"candidate": DecoderModel(path, threads=self._threads), "baseline": self._baseline}
            found = decode_speed(models, self._window, STEPS)
        seconds = {model: 1 / speed.tokens_per_second.median for model, speed in found.items()}
        return {
            "decode_time": seconds["candidate"] / seconds["baseline"],
            "decode_seconds": seconds["candidate"],
            "baseline_decode_seconds": seconds["baseline"],
        }


def past_tokens(past: int | None, context: int | None) -> int:
    """The tokens in the cache before the first timed step.

    Raises:
        DeltaLLMError: where the context has no room for them and the timed steps.
    """
    room = None if context is None else context - STEPS
    chosen = past if past is not None else PAST_TOKENS if room is None else min(PAST_TOKENS, room)
    if chosen <= WARM_UP_STEPS or (room is not None and chosen > room):
        raise DeltaLLMError(
            f"Decode steps behind {chosen} tokens cannot be timed in a context of {context}, {STEPS} steps: give "
            "another --past."
        )
    return chosen
