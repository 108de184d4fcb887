"""The program: its commands, its exit codes, and how failures are told."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

import deltallm_onnx
from deltallm_onnx.cli.bench import bench_command
from deltallm_onnx.cli.calibrate import calibrate_command
from deltallm_onnx.cli.convert import convert_command
from deltallm_onnx.cli.diff import diff_command
from deltallm_onnx.cli.eval import eval_command
from deltallm_onnx.cli.inspect import inspect_command
from deltallm_onnx.cli.interrupt import EXIT_INTERRUPTED, Interrupted
from deltallm_onnx.cli.output import print_error
from deltallm_onnx.cli.package import package_command
from deltallm_onnx.cli.report import report_command
from deltallm_onnx.cli.rewrite import rewrite_command
from deltallm_onnx.cli.run import run_command
from deltallm_onnx.cli.sweep import sweep_command
from deltallm_onnx.cli.usage_errors import usage_sentence
from deltallm_onnx.errors import DeltaLLMError

#: Bad input, a refused request, a wrong option.
EXIT_REFUSED = 2
#: Our own mistake (sysexits.h calls it EX_SOFTWARE): neither "different" nor "refused".
EXIT_BUG = 70

#: Set to anything: the traceback of an unexpected error is printed, as with --debug.
DEBUG_VARIABLE = "DELTALLM_DEBUG"

app = typer.Typer(
    name="deltallm-onnx",
    help="Rewrite the attention of ONNX language models to delta attention, and run them on stock ONNX Runtime.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("convert")(convert_command)
app.command("calibrate")(calibrate_command)
app.command("sweep")(sweep_command)
app.command("rewrite")(rewrite_command)
app.command("inspect")(inspect_command)
app.command("diff")(diff_command)
app.command("run")(run_command)
app.command("bench")(bench_command)
app.command("report")(report_command)
app.command("eval")(eval_command)
app.command("package")(package_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"deltallm-onnx {deltallm_onnx.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar=DEBUG_VARIABLE, help="Print the traceback of an unexpected error.")
    ] = False,
) -> None:
    """Rewrite the attention of ONNX language models to delta attention, and run them on stock ONNX Runtime."""
    del version  # its callback has run
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program and leave with its exit code: 0 ok, 1 different, 2 refused, 70 a bug of ours, 130 interrupted.

    Args:
        arguments: instead of those of the process.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that has no θ shows a question mark; it is no reason to stop.
            stream.reconfigure(errors="replace")
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the program and return its exit code."""
    try:
        result = app(list(arguments) or ["--help"], standalone_mode=False, prog_name="deltallm-onnx")
        sys.stdout.flush()
    except DeltaLLMError as error:
        print_error(str(error))
        return EXIT_REFUSED
    except Interrupted as interruption:
        print_error(f"Interrupted: {interruption}")
        return EXIT_INTERRUPTED
    except typer.Abort:
        result = EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has left (… | head): nothing more to say, and nothing for the interpreter to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001  # the outermost handler: a bug is told in a sentence too
        # Typer wraps click in some versions and contains it in others; both mark usage errors by this method.
        if hasattr(error, "format_message"):
            print_error(usage_sentence(error.format_message(), arguments))
            return EXIT_REFUSED
        if os.environ.get(DEBUG_VARIABLE):
            traceback.print_exc()
        print_error(
            f"This is a bug in deltallm-onnx ({type(error).__name__}: {error}): please report it with the output of "
            "the same command after 'deltallm-onnx --debug'."
        )
        return EXIT_BUG
    # Typer turns Ctrl-C into this code in some versions, and into Abort in others.
    if result == EXIT_INTERRUPTED:
        print_error("Interrupted.")
    return result if isinstance(result, int) else 0
