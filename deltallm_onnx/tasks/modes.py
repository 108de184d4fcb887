"""A model opened for tasks, in one of the modes of evaluation: which calls read held keys."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.evaluation.reading import PROMPT_FORMS, Mode
from deltallm_onnx.runtime import DecoderModel, context_length
from deltallm_onnx.tasks.token_model import TokenModel

DEFAULT_MODE: Mode = "prefill+decode"

#: Context length where no side file names one: the harness's own default.
_DEFAULT_LENGTH = 2048


def open_token_model(path: Path, folder: Path, mode: str, *, threads: int | None = None) -> TokenModel:
    """Open a model for tasks.

    In mode "prefill" every text is a prompt, read by one call. In the others a context is a prompt and what follows it
    is decoded token by token. A dense model reads every text by one call in each.

    Args:
        path: a dense or rewritten .onnx file.
        folder: where config.json or genai_config.json say how long a context may be.
        mode: a `Mode` (DeltaLLM, arXiv 2507.19608, reports "prefill" and "prefill+decode").
        threads: intra-op threads.

    Raises:
        DeltaLLMError: for an unknown mode, and as `DecoderModel` does.
    """
    form = PROMPT_FORMS.get(mode)
    if form is None:
        raise DeltaLLMError(f"mode is {mode!r}: choose one of {', '.join(get_args(Mode))}.")
    max_length = context_length(folder) or _DEFAULT_LENGTH
    model = DecoderModel(path, threads=threads, edit=form)
    if not model.signature.delta_nodes:
        return TokenModel(model, stepwise=False, max_length=max_length)
    return TokenModel(model, stepwise=mode != "prefill", max_length=max_length, generates=mode != "prefill")
