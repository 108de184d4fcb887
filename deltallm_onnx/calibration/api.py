"""`calibrate`: a model, a text and a budget in, thresholds and what they cost out."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from deltallm_onnx.calibration.calibrate import Progress, Silent, calibrate_dense
from deltallm_onnx.calibration.effort import find_effort
from deltallm_onnx.calibration.journal import Journal, journal_path
from deltallm_onnx.calibration.request import Request
from deltallm_onnx.calibration.result import Calibration
from deltallm_onnx.calibration.search import UnreachableError
from deltallm_onnx.calibration.source import ModelFiles, opened_model
from deltallm_onnx.calibration.text import BUNDLED, TextParts, read_text, split_text
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.export.output import check_writable
from deltallm_onnx.runtime.tokenizer import TextTokenizer


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The text to calibrate on.

    Attributes:
        files: plain text or JSON lines; empty takes the bundled text.
        text_key: of JSON lines.
        window_tokens: tokens per window; None takes the model's context, at most 1024.
        windows: of all parts together, at most; None takes the effort's.
    """

    files: tuple[Path, ...] = ()
    text_key: str = "text"
    window_tokens: int | None = None
    windows: int | None = None


def calibrate(
    model: str | Path,
    out_path: str | Path,
    request: Request,
    corpus: Corpus | None = None,
    *,
    resume: bool = True,
    progress: Progress | None = None,
) -> Calibration:
    """Find thresholds per layer and KV head that keep a budget, and write them to a JSON file.

    Every finished measurement goes to a journal beside the file, `<name>.journal`, so that a run that was stopped goes
    on where it was; it is removed when the result is written. With the same model, text, request and number of threads
    the thresholds are the same.

    Args:
        model: a dense .onnx file or a folder with one, tokenizer.json beside it; a Hugging Face model directory or hub
            id, which is traced first.
        out_path: the file to write, by custom deltallm.json.
        request: budget and candidates.
        corpus: the text; None takes the bundled one.
        resume: use the journal of an earlier run.
        progress: receives what is going on.

    Raises:
        UnreachableError: where no plan keeps the budget, with the best reachable; the journal stays.
        DeltaLLMError: for a model, text or journal that cannot be used; nothing is written then.
    """
    out_path, show = Path(out_path), progress or Silent()
    check_writable(out_path)
    if corpus is not None and corpus.files:
        read_text(
            corpus.files, text_key=corpus.text_key
        )  # a text that is not there is refused before a model is traced
    journal = Journal(journal_path(out_path), resume=resume)
    if len(journal):
        show.note(journal.told)
    with opened_model(str(model), out_path.parent, show.step) as files:
        if files.note:
            show.note(files.note)
        try:
            found = calibrate_files(files, request, corpus, journal=journal, scratch=out_path.parent, progress=show)
        except UnreachableError as error:
            raise error.adding(
                f"The measurements stay in {journal.path}, and calibrating for another budget goes on from them."
            ) from None
    found = found.noting([files.note] if files.note else [])
    found.save(out_path)
    with contextlib.suppress(OSError):  # the result is there; a journal left over does no harm
        journal.remove()
    return found


def calibrate_files(
    files: ModelFiles,
    request: Request,
    corpus: Corpus | None = None,
    *,
    journal: Journal,
    scratch: Path,
    progress: Progress | None = None,
) -> Calibration:
    """The same for a dense model that is there, without writing a result.

    Args:
        files: the model.
        request: see `calibrate`.
        corpus: see `calibrate`.
        journal: of measurements.
        scratch: folder for temporary files.
        progress: see `calibrate`.

    Raises:
        DeltaLLMError: as `calibrate`.
    """
    parts = text_parts(files, request, corpus)
    return calibrate_dense(
        files.dense,
        parts,
        request,
        model=files.to_dict(),
        journal=journal,
        folder=scratch,
        progress=progress,
    )


def text_parts(files: ModelFiles, request: Request, corpus: Corpus | None = None) -> TextParts:
    """The windows of text that a calibration reads.

    Args:
        files: the model, whose tokenizer lies beside it.
        request: see `calibrate`.
        corpus: see `calibrate`.

    Raises:
        DeltaLLMError: for a text that cannot be read or is too short, and for windows in which nothing could be held.
    """
    corpus = corpus or Corpus()
    texts: Sequence[Path] = corpus.files or (BUNDLED,)
    name = ", ".join(str(file) for file in corpus.files) or "the bundled text"
    parts = split_text(
        read_text(texts, text_key=corpus.text_key),
        TextTokenizer(files.dense.parent),
        name=name,
        window_tokens=corpus.window_tokens,
        context=files.context,
        windows=corpus.windows or find_effort(request.effort).windows,
    )
    _refuse_short_windows(request, parts.search.shape[1])
    return parts


def _refuse_short_windows(request: Request, tokens: int) -> None:
    """Refuse windows of text in which nothing leaves the exact window: nothing would be measured."""
    exact = request.config.sinks + min(request.windows or (request.config.window,))
    if tokens <= exact + 1:
        raise DeltaLLMError(
            f"The text is read in windows of {tokens} tokens, and sinks and window keep {exact} of them exact, so no "
            "key would ever be held: use a smaller --window."
        )
