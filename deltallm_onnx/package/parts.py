"""Everything that a package is made of, found and checked before the first byte is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.library_file import LibraryFile
from deltallm_onnx.package.cache_facts import CacheFacts, cache_facts
from deltallm_onnx.package.library import Library, build_hint, find_library
from deltallm_onnx.package.model_set import ModelSet, read_model
from deltallm_onnx.package.oldest_runtime import oldest_runtime
from deltallm_onnx.package.programs import ONNXRUNTIME, RUNNER, Runtime, find_onnxruntime, find_runner
from deltallm_onnx.package.request import PackageRequest
from deltallm_onnx.package.sources import sources_root
from deltallm_onnx.package.targets import Target
from deltallm_onnx.runtime.tokenizer import TextTokenizer

#: What the lines of a README continue.
PROMPT = "Once upon a time there was"
#: Bytes beside the model: sources, tokenizer, configurations, licences, the README.
_BESIDE_MODEL = 16 * 10**6


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A short prompt.

    Attributes:
        tokens: ids, separated by commas, as the C++ runner takes them.
        what: they are, in words.
    """

    tokens: str
    what: str


@dataclasses.dataclass(frozen=True)
class Parts:
    """What `find_parts` found.

    Attributes:
        request: what was asked for.
        target: the system.
        model: the model.
        facts: its caches and memory.
        prompt: for the lines of the README.
        library: the operator library; None where sources stand for it, or none is needed.
        sources: the checkout to take sources from; None where a library is there, or none is needed.
        runner: the C++ runner; None where there is none.
        onnxruntime: ONNX Runtime's library; None where it was not named.
    """

    request: PackageRequest
    target: Target
    model: ModelSet
    facts: CacheFacts
    prompt: Prompt
    library: Library | None
    sources: Path | None
    runner: LibraryFile | None
    onnxruntime: Runtime | None

    @property
    def programs(self) -> dict[str, Path]:
        """The binaries by their names in the package."""
        named = ((self.target.library, self.library), (RUNNER, self.runner), (ONNXRUNTIME, self.onnxruntime))
        return {name: part.path for name, part in named if part is not None}

    @property
    def size(self) -> int:
        """Bytes that the package takes at most."""
        copies = self.request.writes_onnx + self.request.writes_ort
        return copies * self.model.size + sum(path.stat().st_size for path in self.programs.values()) + _BESIDE_MODEL

    @property
    def model_name(self) -> str:
        """The file of the package that programs open."""
        return self.model.path.name if self.request.writes_onnx else self.ort_name

    @property
    def ort_name(self) -> str:
        """The .ort, where there is one."""
        return f"{self.model.path.stem}.ort"

    def lacks(self) -> Iterator[str]:
        """What the package lacks, and how to get it; one sentence each."""
        target = self.target
        if self.sources is not None:
            yield (
                f"There is no operator library for {target.name} here, so its sources are in the package: "
                f"{build_hint(target)}, or name a built one with --library FILE."
            )
        if target.system != "linux":
            yield f"Nothing of this package was run: no device with {target.title} is at hand here."
            return
        if self.runner is None:
            commands = " && ".join(target.runner_commands)
            yield f"The C++ runner is not in the package: build it with '{commands}', or name it with --runner FILE."
        if self.onnxruntime is None:
            yield (
                f"ONNX Runtime is not in the package: put {ONNXRUNTIME} of its release for {target.machine} beside the "
                "model, or name it with --onnxruntime FILE."
            )
        elif not self.onnxruntime.licences:
            yield f"ONNX Runtime's licence does not lie with {self.onnxruntime.path}: add it before you pass this on."


def find_parts(request: PackageRequest, target: Target) -> Parts:
    """Find and check everything.

    Raises:
        DeltaLLMError: for a part that is missing or does not suit the target.
    """
    # The programs first: whoever names a wrong one has not waited for the model.
    library = find_library(target, request.library) if request.needs_library else None
    sources = sources_root(target) if request.needs_library and library is None else None
    runner = find_runner(target, request.runner)
    onnxruntime = find_onnxruntime(target, request.onnxruntime)
    model = read_model(request, target)
    if onnxruntime is not None:
        _check_version(onnxruntime, model)
    facts, prompt = cache_facts(model, request.context), _example_prompt(model)
    return Parts(request, target, model, facts, prompt, library, sources, runner, onnxruntime)


def _check_version(onnxruntime: Runtime, model: ModelSet) -> None:
    needed = oldest_runtime(model.proto)
    if onnxruntime.version is not None and _numbers(onnxruntime.version) < _numbers(needed):
        raise DeltaLLMError(
            f"{onnxruntime.path} is ONNX Runtime {onnxruntime.version}, and {model.path} needs {needed} or newer: name "
            "a newer one with --onnxruntime."
        )


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]


def _example_prompt(model: ModelSet) -> Prompt:
    if (model.folder / "tokenizer.json").is_file():
        ids, what = TextTokenizer(model.folder).encode(PROMPT), f"`{PROMPT}` in this model's tokens"
    else:
        ids = [index % (model.vocabulary or 1) for index in range(1, 4)]
        what = "some tokens, for the model came without a tokenizer"
    return Prompt(",".join(map(str, ids)), what)
