"""Instructions that a program executes on an emulated ARM64 processor, interval by interval."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from deltallm_onnx.errors import DeltaLLMError

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parent
_BUILD = _ROOT / "build" / "bench"
#: What `make arm64` makes.
ARM64 = _ROOT / "build" / "arm64"
LIBRARY = ARM64 / "ops" / "libdeltallm_ops.so"
QEMU = ARM64 / "tools" / "bin" / "qemu-aarch64"
#: Emulated processors: without and with the instructions for dot products of int8.
PROCESSORS = ("cortex-a53", "cortex-a76")
#: Instructions of the intervals that `arm64_layers.cc` begins with, beside those of a mark.
KNOWN = (0, 2 * 1000, 2 * 50000, 3000)

#: Instructions that a compiler may put around one asm statement.
_AROUND = 8
_PAGE_BITS = 16
_LIBRARIES = {"libdeltallm_ops.so": "operators", "libonnxruntime.so": "onnxruntime"}


@dataclasses.dataclass(frozen=True)
class Interval:
    """What was executed between two marks.

    Attributes:
        instructions: how many.
        parts: those of them in the library of "operators", in "onnxruntime" and in "other" code, such as libc's.
    """

    instructions: int
    parts: Mapping[str, int]


def count(processor: str, plan: Path, *, layers: bool = True) -> list[Interval]:
    """Run `arm64_layers.cc` under qemu and count.

    Args:
        processor: as qemu names it.
        plan: its plan; PLAN.maps is left beside it where there are layers.
        layers: False: the intervals of known length alone.

    Returns:
        Intervals in their order, without the instructions of a mark: `KNOWN`, then one per call of every layer that
        was not refused.

    Raises:
        DeltaLLMError: where `make arm64` was not run, where there is no compiler, and where the known intervals have
            other lengths.
    """
    check_arm64()
    guest, counter = _programs()
    command = [str(guest), str(plan)]
    if layers:
        command += [str(_onnxruntime()), str(LIBRARY)]
    read_end, write_end = os.pipe()
    # The log goes to the counter as it is written: of one call it may have a hundred megabytes.
    qemu = [str(QEMU), "-cpu", processor, "-L", str(ARM64 / "root"), "-d", "in_asm,exec,nochain,strace"]
    qemu += ["-D", f"/proc/self/fd/{write_end}", *command]
    with tempfile.TemporaryFile("w+") as found:
        with subprocess.Popen([str(counter)], stdin=read_end, stdout=found) as reader:  # noqa: S603  # our own program
            os.close(read_end)
            try:
                done = subprocess.run(  # noqa: S603  # qemu, from this project's build folder
                    qemu,
                    pass_fds=(write_end,),
                    # Its thread would be in the log beside ours.
                    env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
                    capture_output=True,
                    text=True,
                    check=False,
                )
            finally:
                os.close(write_end)
        found.seek(0)
        lines = found.read().splitlines()
    if done.returncode != 0 or reader.returncode != 0:
        raise DeltaLLMError(f"qemu on {processor} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    libraries = _pages(plan.with_name(plan.name + ".maps").read_text(encoding="utf-8")) if layers else {}
    return check_known([_interval(line, libraries) for line in lines])


def check_known(intervals: list[Interval]) -> list[Interval]:
    """Take the mark's own instructions off, and see that the known intervals have their lengths.

    Raises:
        DeltaLLMError: where they have not.
    """
    own = intervals[0].instructions if intervals else 0
    found = [interval.instructions - own for interval in intervals]
    # A loop and a run have some instructions around them: the difference between two loops has none.
    loops = found[2] - found[1] if len(found) >= len(KNOWN) else 0
    if loops != KNOWN[2] - KNOWN[1] or not 0 <= found[3] - KNOWN[3] <= _AROUND:
        raise DeltaLLMError(f"The counter finds {found[: len(KNOWN)]} instructions where there are {list(KNOWN)}.")
    return [dataclasses.replace(interval, instructions=n) for interval, n in zip(intervals, found, strict=True)]


def _interval(line: str, libraries: Mapping[int, str]) -> Interval:
    """Read a line of `count_instructions.cc`."""
    instructions, _blocks, *pages = line.split()
    parts = dict.fromkeys([*_LIBRARIES.values(), "other"], 0)
    for page in pages:
        number, executed = page.split(":")
        parts[libraries.get(int(number, 16), "other")] += int(executed)
    return Interval(int(instructions), parts)


def _pages(maps: str) -> dict[int, str]:
    """The pages of the two libraries, from the lines of /proc/self/maps."""
    found: dict[int, str] = {}
    for line in maps.splitlines():
        addresses, *_, path = line.split()
        for library, part in _LIBRARIES.items():
            if Path(path).name.startswith(library):
                begin, end = (int(address, 16) for address in addresses.split("-"))
                found |= dict.fromkeys(range(begin >> _PAGE_BITS, (end - 1 >> _PAGE_BITS) + 1), part)
    return found


def check_arm64() -> None:
    """Refuse where `make arm64` has not been run.

    Raises:
        DeltaLLMError: naming what is missing.
    """
    for path in (ARM64 / ".ready", LIBRARY, QEMU):
        if not path.is_file():
            raise DeltaLLMError(f"{path} is missing: run 'make arm64' first.")


def _onnxruntime() -> Path:
    (library,) = (ARM64 / "site" / "onnxruntime" / "capi").glob("libonnxruntime.so.1.*")
    return library


@functools.cache
def _programs() -> tuple[Path, Path]:
    """The program for ARM64 and the counter for this machine, compiled."""
    headers = (_ROOT / "build" / "ort-headers" / ".ready").read_text(encoding="utf-8").strip()
    cross = _compiler("aarch64-linux-gnu-g++", str(ARM64 / "tools" / "bin"))
    include = ["-isystem", headers, "-I", str(_ROOT / "examples" / "cpp")]
    guest = _compiled(cross, _HERE / "arm64_layers.cc", "arm64_layers", *include, "-ldl")
    return guest, _compiled(_compiler("g++"), _HERE / "count_instructions.cc", "count_instructions")


def _compiler(name: str, folder: str = "") -> str:
    found = shutil.which(name) or shutil.which(name, path=folder)
    if found is None:
        raise DeltaLLMError(f"There is no {name}: install it, or run 'make arm64'.")
    return found


def _compiled(compiler: str, source: Path, name: str, *options: str) -> Path:
    _BUILD.mkdir(parents=True, exist_ok=True)
    program = _BUILD / name
    temporary = program.with_name(f".{name}.{os.getpid()}")
    command = [
        compiler,
        "-O2",
        "-std=c++17",
        "-Wall",
        "-Wextra",
        "-Werror",
        str(source),
        "-o",
        str(temporary),
        *options,
    ]
    subprocess.run(command, check=True)  # noqa: S603  # our own sources
    return temporary.replace(program)
