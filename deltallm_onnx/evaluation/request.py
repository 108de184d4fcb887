"""An evaluation as the command line asks for it: from files to figures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.evaluation.measure import Progress, evaluate
from deltallm_onnx.evaluation.reading import Mode
from deltallm_onnx.evaluation.result import Evaluation
from deltallm_onnx.evaluation.retrieval import DEPTHS, SAMPLES, Sample, passkeys, repeated_sequences
from deltallm_onnx.evaluation.text import TextFile, choose_windows, read_text, refuse_other_tokenizer
from deltallm_onnx.runtime.side_files import context_length
from deltallm_onnx.runtime.tokenizer import TextTokenizer


@dataclasses.dataclass(frozen=True)
class EvaluationRequest:
    """What to measure, and on what.

    Attributes:
        model: the .onnx file that is judged.
        text: a UTF-8 file.
        baseline: the dense .onnx file; None measures the model alone.
        tokenizer: folder with tokenizer.json; None is the model's.
        mode: which calls read held keys.
        window_tokens: see `choose_windows`.
        windows: see `choose_windows`.
        max_tokens: see `choose_windows`; retrieval reads no more either.
        depths: of what is to be retrieved; empty leaves retrieval out.
        retrieval_samples: contexts per depth and task.
        speed: whether to time decode steps.
        threads: intra-op threads; None leaves the choice to ONNX Runtime.
        seed: of the bootstrap and of what is to be retrieved, ≥ 0.
    """

    model: Path
    text: Path
    baseline: Path | None = None
    tokenizer: Path | None = None
    mode: Mode = "prefill+decode"
    window_tokens: int | None = None
    windows: int | None = None
    max_tokens: int | None = None
    depths: tuple[float, ...] = DEPTHS
    retrieval_samples: int = SAMPLES
    speed: bool = True
    threads: int | None = None
    seed: int = 0

    @property
    def folder(self) -> Path:
        """Where the tokenizer lies."""
        return self.model.parent if self.tokenizer is None else self.tokenizer


def check_files(request: EvaluationRequest) -> None:
    """Refuse what can be told to be missing before anything is opened.

    Raises:
        DeltaLLMError: for a negative seed, for a model, baseline, text or tokenizer that is not there, and for a
            baseline that is the model itself.
    """
    if request.seed < 0:
        raise DeltaLLMError(f"seed is {request.seed}: give a whole number of at least 0.")
    for path in (request.model, request.baseline):
        if path is not None and path.is_dir():
            raise DeltaLLMError(f"{path} is a directory: name the .onnx file in it.")
        if path is not None and not path.is_file():
            raise DeltaLLMError(f"There is no file {path}: give the path of an .onnx model.")
    refuse_itself(request.model, request.baseline)
    if not (request.folder / "tokenizer.json").is_file():
        raise DeltaLLMError(
            f"There is no {request.folder / 'tokenizer.json'}: name the tokenizer's folder with --tokenizer DIR."
        )
    if not request.text.exists():
        raise DeltaLLMError(f"Cannot read the text {request.text} (No such file or directory): name a text file.")


def refuse_itself(model: Path, baseline: Path | None) -> None:
    """Refuse to compare a model with itself.

    Raises:
        DeltaLLMError: where both are one file.
    """
    if baseline is not None and baseline.is_file() and model.is_file() and baseline.samefile(model):
        raise DeltaLLMError(f"The baseline {baseline} is the model itself: give its dense form, or leave it out.")


def run_evaluation(request: EvaluationRequest, *, progress: Progress) -> Evaluation:
    """Read the text, choose what to read of it, and measure.

    Raises:
        DeltaLLMError: for a missing or unsuitable file, a number out of range, a text without a window, and a baseline
            with another vocabulary or tokenizer.
    """
    check_files(request)
    folder = request.folder
    tokenizer = TextTokenizer(folder)
    text = read_text(request.text, tokenizer)
    if request.baseline is not None and request.tokenizer is None:
        refuse_other_tokenizer(folder, request.baseline.parent, text)
    windows = choose_windows(
        text,
        context=context_length(request.model.parent) or context_length(folder),
        window_tokens=request.window_tokens,
        windows=request.windows,
        max_tokens=request.max_tokens,
    )
    samples, notes = _samples(request, tokenizer, text, windows)
    evaluation = evaluate(
        request.model,
        request.baseline,
        windows,
        mode=request.mode,
        samples=samples,
        speed=request.speed,
        threads=request.threads,
        seed=request.seed,
        progress=progress,
    )
    return dataclasses.replace(evaluation, text=text.to_dict(), notes=evaluation.notes + notes)


def _samples(
    request: EvaluationRequest, tokenizer: TextTokenizer, text: TextFile, windows: npt.NDArray[np.int64]
) -> tuple[list[Sample], tuple[str, ...]]:
    """What is to be retrieved, and why some of it is left out."""
    if not request.depths:
        return [], ()
    S, count = windows.shape[1], request.retrieval_samples
    if request.max_tokens is not None:
        # Two tasks, each at every depth and once without.
        count = min(count, request.max_tokens // (2 * (len(request.depths) + 1) * S))
        if count < 1 <= request.retrieval_samples:
            needed = 2 * (len(request.depths) + 1) * S
            return [], (f"Retrieval was left out: it reads at least {needed} tokens, more than --max-tokens.",)
    settings = {"begin": len(text.begin), "samples": count, "seed": request.seed}
    repeated = repeated_sequences(windows, depths=request.depths, **settings)
    named = passkeys(tokenizer, windows, depths=request.depths, **settings)
    notes = []
    if not repeated:
        notes.append(f"No sequence was repeated: windows of {S} tokens have no room for one.")
    if isinstance(named, str):
        notes.append(f"No pass key was asked for: {named}.")
        named = []
    return [*repeated, *named], tuple(notes)
