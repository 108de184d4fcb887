"""examples/cpp: built once, and run on token ids."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnxruntime as ort

from deltallm_onnx.runtime import ops_library_path

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class RunnerOutcome:
    """Exit code, the new token ids, and what was said on stderr."""

    code: int
    tokens: list[int]
    err: str

    @property
    def cache_bytes(self) -> int:
        found = re.search(r"caches (\d+) bytes", self.err)
        assert found, self.err
        return int(found.group(1))


@dataclasses.dataclass(frozen=True)
class CppRunner:
    """The program, the libraries it loads, and what starts it where this processor cannot."""

    program: Path
    onnxruntime: Path
    library: Path
    prefix: tuple[str, ...] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __call__(
        self, model: Path, prompt: Sequence[int], new: int, *options: object, library: bool = True
    ) -> RunnerOutcome:
        """Decode `new` tokens; `options` come last, so they override the others."""
        given = ["--ort", self.onnxruntime, "--model", model, "--tokens", ",".join(map(str, prompt)), "--new", new]
        given += ["--ops", self.library] if library else []
        done = subprocess.run(
            [*self.prefix, str(self.program), *map(str, [*given, *options])],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        return RunnerOutcome(done.returncode, [int(token) for token in done.stdout.split()], done.stderr)


def build_runner(folder: Path, *configuration: str) -> Path:
    """Build examples/cpp in this folder, unless it is up to date; the program's path."""
    folder.mkdir(parents=True, exist_ok=True)
    headers = (ROOT / "build" / "ort-headers" / ".ready").read_text().strip()
    command = ["cmake", "-S", str(ROOT / "examples" / "cpp"), "-B", str(folder), *configuration]
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # pytest-xdist's processes share the folder
        for step in (command, ["cmake", "--build", str(folder)]):
            environment = {**os.environ, "ONNXRUNTIME_INCLUDE_DIR": headers}
            done = subprocess.run(step, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
    return folder / "deltallm_run"


def own_onnxruntime() -> Path:
    """The shared library in the onnxruntime wheel that this interpreter uses."""
    (library,) = (Path(ort.__file__).parent / "capi").glob("libonnxruntime.so.1.*")
    return library


def native_runner() -> CppRunner:
    """For this machine."""
    return CppRunner(build_runner(ROOT / "build" / "runner"), own_onnxruntime(), ops_library_path())
