"""`deltallm-onnx calibrate`: a model, a text and a budget in, thresholds per layer and head out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltallm_onnx.cli.calibrate_options import (
    CandidateOptions,
    TextOptions,
    takes_candidate_options,
    takes_text_options,
)
from deltallm_onnx.cli.calibrate_progress import shown_progress
from deltallm_onnx.cli.interrupt import keeping_measurements
from deltallm_onnx.cli.output import print_json
from deltallm_onnx.cli.plan_hint import plan_hint
from deltallm_onnx.runtime.side_files import context_length


@takes_text_options
@takes_candidate_options
def calibrate_command(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A dense .onnx with its tokenizer beside it, or a Hugging Face model."),
    ],
    *,
    budget: Annotated[
        str,
        typer.Option(metavar="kl=X | ppl=+X% | delta_sparsity=X | kv_bytes=X[x]", help="What to keep, or to reach."),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The JSON file to write.")] = Path("deltallm.json"),
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on from the journal of a run that was stopped.")
    ] = True,
    json_output: Annotated[bool, typer.Option("--json", help="Print the content of the file.")] = False,
    corpus: TextOptions,
    candidates: CandidateOptions,
) -> None:
    """Find thresholds that keep a budget, and say on other text what they cost and give."""
    from deltallm_onnx.calibration.api import Corpus, calibrate  # noqa: PLC0415  # lazily: the passes take a while
    from deltallm_onnx.calibration.journal import journal_path  # noqa: PLC0415
    from deltallm_onnx.calibration.request import CONFIDENCE, request_for  # noqa: PLC0415

    folder = Path(model) if Path(model).is_dir() else Path(model).parent
    request = request_for(
        budget,
        candidates.config(),
        windows=candidates.windows(context_length(folder)),
        v_skip=candidates.v_skip,
        rules=tuple(candidates.rule) if candidates.rule else None,
        effort=candidates.effort,
        confidence=CONFIDENCE if candidates.confidence is None else candidates.confidence,
        seed=candidates.seed,
        threads=candidates.threads,
    )
    text = Corpus(corpus.files, corpus.text_key, corpus.window_tokens, corpus.text_windows)
    again = "the same command goes on from there" if resume else "the command goes on from there without --no-resume"
    with keeping_measurements(journal_path(out), again), shown_progress() as progress:
        found = calibrate(model, out, request, text, resume=resume, progress=progress)
    if json_output:
        print_json(found.to_dict())
        return
    print("\n".join(found.lines))
    print(f"wrote {out} ({found.seconds:.0f} s); {plan_hint(model, out)}")
