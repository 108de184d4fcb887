"""The systems that a package can be made for, and what builds the operator library of each."""

from __future__ import annotations

import dataclasses
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.ort_format import OrtPlatform

#: The checkout that this package runs from; an installed wheel has none.
_ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Target:
    """A system.

    Attributes:
        name: as `--target` takes it.
        title: for people.
        system: what loads libraries there.
        machine: processor, as `uname -m` gives it.
        ort_platform: what ONNX Runtime's converter may suppose of the processor.
        library: file name of the operator library in a package.
        page_size: bytes; the library must load on systems with pages of this size.
        commands: what builds the library in a checkout.
        where: it is built, as the end of a sentence.
        builds: where a checkout's builds for other machines leave the library, relative to the checkout.
        runner_commands: what builds the C++ runner.
        runner_builds: where such builds leave it.
    """

    name: str
    title: str
    system: Literal["linux", "android", "ios"]
    machine: str
    ort_platform: OrtPlatform
    library: str
    page_size: int
    commands: tuple[str, ...]
    where: str = ""
    builds: tuple[str, ...] = ()
    runner_commands: tuple[str, ...] = ()
    runner_builds: tuple[str, ...] = ()

    @property
    def is_this_machine(self) -> bool:
        """Whether libraries of this machine run there."""
        return self.system == "linux" and sys.platform == "linux" and platform.machine() == self.machine


_SHARED = "libdeltallm_ops.so"
_ARCHIVE = "libdeltallm_ops.a"

TARGETS = {
    target.name: target
    for target in (
        Target(
            name="linux-x64",
            title="64-bit x86 Linux",
            system="linux",
            machine="x86_64",
            ort_platform="amd64",
            library=_SHARED,
            page_size=4096,
            commands=("make setup",),
            where=" on such a machine",
            runner_commands=("make runner",),
        ),
        Target(
            name="linux-arm64",
            title="64-bit ARM Linux",
            system="linux",
            machine="aarch64",
            ort_platform="arm",
            library=_SHARED,
            page_size=16384,
            builds=(f"build/arm64/ops/{_SHARED}", f"build/linux-arm64/{_SHARED}"),
            commands=("make arm64",),
            runner_builds=("build/arm64/runner/deltallm_run",),
            runner_commands=("make arm64",),
        ),
        Target(
            name="android-arm64",
            title="Android, arm64-v8a",
            system="android",
            machine="aarch64",
            ort_platform="arm",
            library=_SHARED,
            page_size=16384,
            builds=(f"build/android-arm64/{_SHARED}",),
            commands=("cmake -S ops --preset android-arm64", "cmake --build build/android-arm64 --target deltallm_ops"),
            where=" with ANDROID_NDK set",
        ),
        Target(
            name="ios",
            title="iOS, arm64",
            system="ios",
            machine="aarch64",
            ort_platform="arm",
            library=_ARCHIVE,
            page_size=16384,
            builds=(f"build/ios-arm64/Release-iphoneos/{_ARCHIVE}",),
            commands=(
                "cmake -S ops --preset ios-arm64",
                "cmake --build build/ios-arm64 --config Release --target deltallm_ops_static",
            ),
            where=" on a Mac",
        ),
    )
}


def find_target(name: str) -> Target:
    """The target of a name.

    Raises:
        DeltaLLMError: for an unknown one.
    """
    if name not in TARGETS:
        raise DeltaLLMError(f"There is no target {name!r}: choose one of {', '.join(TARGETS)}.")
    return TARGETS[name]


def checkout() -> Path | None:
    """The checkout with the operators' sources that this package runs from; None for an installed wheel."""
    return _ROOT if (_ROOT / "ops" / "CMakeLists.txt").is_file() else None


def built(names: Iterable[str]) -> Path | None:
    """The first of these files, relative to the checkout, that a build has left there; None where none has."""
    root = checkout()
    return None if root is None else next((root / name for name in names if (root / name).is_file()), None)
