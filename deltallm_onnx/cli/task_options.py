"""The options of `eval` that name tasks of lm-evaluation-harness, and what they lead to."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltallm_onnx.cli.option_groups import takes
from deltallm_onnx.cli.output import status
from deltallm_onnx.errors import DeltaLLMError

if TYPE_CHECKING:
    from deltallm_onnx.tasks import PaperReport, TaskReport


@dataclasses.dataclass(frozen=True)
class TaskOptions:
    """What the user said of tasks; None means not said."""

    tasks: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME,…", help="Tasks of lm-evaluation-harness, such as winogrande,piqa."),
    ] = None
    task_file: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE | FOLDER",
            help="A task's items from a file instead of the hub, or a folder of tasks of your own; may be repeated.",
        ),
    ] = None
    limit: Annotated[int | None, typer.Option(metavar="N", help="Only the first N items of each task.")] = None
    paper: Annotated[
        bool, typer.Option("--paper", help="Both modes of the paper, in the layout of its table; needs tasks.")
    ] = False

    @property
    def named(self) -> bool:
        """Whether there are tasks to evaluate."""
        return self.tasks is not None or bool(self.task_file)

    def refuse_unused(self) -> None:
        """Refuse options that only matter with tasks.

        Raises:
            DeltaLLMError: naming the option.
        """
        if not self.named and (self.paper or self.limit is not None):
            raise DeltaLLMError(f"--{'paper' if self.paper else 'limit'} is for tasks: name some with --tasks.")

    def evaluate(
        self,
        model: Path,
        *,
        baseline: Path | None,
        mode: str,
        tokenizer: Path | None,
        seed: int,
        threads: int | None,
    ) -> TaskReport | PaperReport:
        """Evaluate the tasks; arguments and refusals as in `deltallm_onnx.tasks.run_tasks`."""
        from deltallm_onnx.tasks import DEFAULT_MODE, run_paper, run_tasks  # noqa: PLC0415  # numpy and ONNX Runtime

        if self.paper and mode != DEFAULT_MODE:
            raise DeltaLLMError(f"--paper has two modes of its own: leave out --mode {mode}.")
        names = [name.strip() for name in (self.tasks or "").split(",") if name.strip()]
        files, folders = _files(self.task_file or [])
        with status("Loading tasks …") as tell:
            if self.paper:
                return run_paper(
                    model,
                    names,
                    task_files=files,
                    task_folders=folders,
                    limit=self.limit,
                    baseline=baseline,
                    tokenizer=tokenizer,
                    seed=seed,
                    threads=threads,
                    progress=tell,
                )
            return run_tasks(
                model,
                names,
                task_files=files,
                task_folders=folders,
                limit=self.limit,
                mode=mode,
                baseline=baseline,
                tokenizer=tokenizer,
                seed=seed,
                threads=threads,
                progress=tell,
            )


takes_task_options = takes(TaskOptions, "tasks")


def _files(given: list[str]) -> tuple[dict[str, Path], list[Path]]:
    """NAME=FILE by name, and folders."""
    files: dict[str, Path] = {}
    folders = []
    for text in given:
        name, separator, path = text.partition("=")
        if not separator:
            folders.append(Path(text))
        elif name in files:
            raise DeltaLLMError(f"--task-file names two files for {name}: {files[name]} and {path}.")
        else:
            files[name] = Path(path)
    return files, folders
