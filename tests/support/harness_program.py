"""What runs where lm_eval is installed (`make peers`): our adapter, the harness's Hugging Face backend, whole tasks.

Called as a program for many jobs at once: importing the harness takes longer than any of them.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.evaluator import evaluate

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.tasks import run_paper, run_tasks
from deltallm_onnx.tasks.adapter import HarnessModel
from deltallm_onnx.tasks.catalogue import load_task
from deltallm_onnx.tasks.harness import harness_session
from deltallm_onnx.tasks.modes import open_token_model


def answers(job: dict[str, Any]) -> dict[str, Any]:
    """Answers to requests given as {kind: list of arguments}, by our adapter or, without a mode, by transformers."""
    model, mode = Path(job["model"]), job.get("mode")
    harness_model = _transformers(model) if mode is None else _ours(model, mode)
    return {
        kind: getattr(harness_model, kind)([_request(kind, arguments) for arguments in listed])
        for kind, listed in job["requests"].items()
    }


def tasks(job: dict[str, Any]) -> dict[str, Any]:
    """A report of `run_tasks` (or `run_paper`) and its lines."""
    files = {name: Path(file) for name, file in job.get("files", {}).items()}
    folders = [Path(folder) for folder in job.get("folders", [])]
    settings = {key: job[key] for key in ("limit", "mode", "seed") if key in job}
    baseline = Path(job["baseline"]) if "baseline" in job else None
    run: Callable[..., Any] = run_paper if job.get("paper") else run_tasks
    report = run(
        Path(job["model"]), job.get("tasks", []), task_files=files, task_folders=folders, baseline=baseline, **settings
    )
    return {**report.to_dict(), "lines": report.lines}


def tasks_by_transformers(job: dict[str, Any]) -> dict[str, Any]:
    """Metrics of the harness's own backend on the same files, by task."""
    found = {}
    with harness_session():
        for name, file in job["files"].items():
            task = load_task(name, Path(file))
            task.set_config(key="num_fewshot", value=0)
            results = evaluate(lm=_transformers(Path(job["model"])), task_dict={"tasks": {name: task}})
            found[name] = {
                key.partition(",")[0]: value for key, value in results["results"][name].items() if "," in key
            }
    return found


def _ours(model: Path, mode: str) -> HarnessModel:
    return HarnessModel(open_token_model(model, model.parent, mode), model.parent)


def _transformers(folder: Path) -> Any:
    from lm_eval.models.huggingface import HFLM  # noqa: PLC0415  # imports torch

    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1)


def _request(kind: str, arguments: Sequence[Any]) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=tuple(arguments), idx=0)


def main() -> None:
    """Do the jobs of a JSON file, each {"do": name of a function here, …}; results or refusals go into another."""
    jobs, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.write_text(json.dumps([_done(job) for job in json.loads(jobs.read_text())]))


def _done(job: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"result": globals()[job["do"]](job)}
    except DeltaLLMError as error:
        return {"refused": str(error)}
    except Exception:  # noqa: BLE001  # the tests show it
        return {"failed": traceback.format_exc()}


if __name__ == "__main__":
    main()
