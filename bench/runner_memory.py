"""Memory of the C++ program with an int4 model of 1B geometry: our caches and GroupQueryAttention's, .onnx and .ort.

    make runner && python -m bench.runner_memory --record bench/records

writes a Llama of random int4 weights (under build/bench), has examples/cpp read a prompt in chunks and decode, and
reports the largest resident memory of its process, how much is left at the end, and tokens per second in CPU time with
one thread. The first of --caches is run in every one of --forms, the others in the first form. It takes 1.3 GB on disk,
as much again for each .ort while it is measured, and up to 4 GB of memory where an .ort is written.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from bench.contenders import DELTA_ATTRIBUTES, THRESHOLD, Contender
from bench.llama import LlamaConfig, write_model, write_weights
from bench.memory import CACHES, CONFIGS
from bench.runner_memory_table import memory_table
from bench.script import check_record_folder, refusals, script_parser
from deltallm_onnx.bench import write_record
from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.runtime import ops_library_path
from deltallm_onnx.runtime.environment import environment

_ROOT = Path(__file__).resolve().parents[1]
_FOLDER = _ROOT / "build" / "bench"
RUNNER = _ROOT / "build" / "runner" / "deltallm_run"
#: How a model is opened: weights mapped from the data file, the .ort read into memory, the .ort mapped.
FORMS: Mapping[str, tuple[str, ...]] = {
    ".onnx": (),
    ".ort": ("--mmap", "0"),
    ".ort, mapped": ("--mmap", "1"),
}
_SEED = 20250730


@dataclasses.dataclass(frozen=True)
class Sample:
    """A process, when it had printed some tokens.

    Attributes:
        tokens: printed so far.
        cpu_seconds: of its first thread.
        status: bytes, by the names of /proc/PID/status.
    """

    tokens: int
    cpu_seconds: float
    status: Mapping[str, int]

    @property
    def peak(self) -> int:
        """Largest resident memory so far: the system adds up its count now and then, and it may lag behind."""
        return max(self.status["VmHWM"], self.status["VmRSS"])


def watch(command: Sequence[str]) -> tuple[list[Sample], str]:
    """Run the program, look at its process whenever it prints a token.

    The peak is taken from VmHWM, for `ru_maxrss` of a child begins with the size of its parent.

    Returns:
        A sample per token, and what it said on stderr.

    Raises:
        DeltaLLMError: with its sentence, where it refused.
    """
    samples: list[Sample] = []
    printed = b""
    with tempfile.TemporaryFile("w+") as said:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said) as process:  # noqa: S603  # our own program
            assert process.stdout is not None  # noqa: S101  # asked for above
            while piece := os.read(process.stdout.fileno(), 1 << 16):
                printed += piece
                sample = _sample(process.pid, printed.count(b" "))
                if sample is not None:
                    samples.append(sample)
        said.seek(0)
        err = said.read()
    if process.returncode != 0 or not samples:
        raise DeltaLLMError(f"deltallm_run ended with {process.returncode}: {err.strip()[-500:]}")
    return samples, err


def _sample(pid: int, tokens: int) -> Sample | None:
    """None where the process has just ended."""
    folder = Path("/proc") / str(pid)
    try:
        nanoseconds = int((folder / "schedstat").read_text(encoding="ascii").split()[0])
        status = (folder / "status").read_text(encoding="utf-8")
    except OSError:
        return None
    found = {
        name: int(kib) * 1024
        for name, kib in re.findall(r"^(VmHWM|VmRSS|RssAnon|RssFile):\s+(\d+) kB$", status, re.MULTILINE)
    }
    return Sample(tokens, nanoseconds / 1e9, found) if "VmHWM" in found else None


def measure(model: Path, contender: Contender, options: argparse.Namespace, extra: Sequence[str]) -> dict[str, Any]:
    """Open the model alone, then read the prompt and decode: JSON-ready."""
    vocabulary = CONFIGS[options.config].vocabulary
    prompt = np.random.default_rng(_SEED).integers(0, vocabulary, options.context - options.steps)
    (library,) = (Path(ort.__file__).parent / "capi").glob("libonnxruntime.so.1.*")
    command = [str(RUNNER), "--model", str(model), "--ort", str(library), "--threads", "1", *extra]
    command += ["--ops", str(ops_library_path())] if contender.ours else []
    command += ["--capacity", str(options.context), "--chunk", str(options.chunk)]
    (opened, *_), _ = watch([*command, "--tokens", str(prompt[0]), "--new", "1"])
    tokens = ",".join(map(str, prompt))
    samples, said = watch([*command, "--tokens", tokens, "--new", str(options.steps)])
    # Behind the last token the process takes itself apart.
    first, running, last = samples[0], samples[-2], samples[-1]
    caches = re.search(r"caches (\d+) bytes", said)
    if caches is None or first.tokens >= last.tokens:
        raise DeltaLLMError(f"deltallm_run did not say what was expected: {said.strip()}")
    return {
        "opened_peak_bytes": opened.peak,
        "peak_bytes": max(sample.peak for sample in samples),
        "resident_bytes": running.status["VmRSS"],
        "resident_anonymous_bytes": running.status["RssAnon"],
        "resident_file_bytes": running.status["RssFile"],
        "kv_bytes": int(caches[1]),
        "opening_cpu_seconds": round(opened.cpu_seconds, 3),
        # The short run opens the model too, and reads one token.
        "prompt_tokens_per_second": (len(prompt) - 1) / (first.cpu_seconds - opened.cpu_seconds),
        "decode_tokens_per_second": (last.tokens - first.tokens) / (last.cpu_seconds - first.cpu_seconds),
    }


def write_graph(config: LlamaConfig, contender: Contender, folder: Path) -> Path:
    """Write one variant beside the weights, with the configuration that the program sizes packed caches by."""
    path = write_model(config, contender, folder)
    if contender.ours:
        model = onnx.load(path, load_external_data=False)
        config_json = json.dumps(_delta_config(contender).to_dict(), separators=(",", ":"))
        onnx.helper.set_model_props(model, {"deltallm.config": config_json})
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        onnx.save(model, temporary)
        temporary.replace(path)
    return path


def _delta_config(contender: Contender) -> DeltaConfig:
    """What `DELTA_ATTRIBUTES` say, as a rewriting records it."""
    return DeltaConfig(
        threshold=THRESHOLD,
        window=DELTA_ATTRIBUTES["delta_window"],
        sinks=DELTA_ATTRIBUTES["sinks"],
        prefill=DELTA_ATTRIBUTES["prefill"],
        granularity=DELTA_ATTRIBUTES["granularity"],
        cache_format=contender.cache,
    )


@contextmanager
def ort_file(model: Path, contender: Contender) -> Iterator[Path]:
    """The same model as .ort, written by ONNX Runtime's converter in a process of its own; removed afterwards."""
    with tempfile.TemporaryDirectory(prefix=".ort-", dir=model.parent) as folder:
        command = [sys.executable, "-m", "onnxruntime.tools.convert_onnx_models_to_ort", str(model)]
        command += ["--output_dir", folder, "--optimization_style", "Fixed"]
        command += ["--custom_op_library", str(ops_library_path())] if contender.ours else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # our own interpreter
        written = Path(folder) / f"{model.stem}.ort"
        if done.returncode != 0 or not written.is_file():
            raise DeltaLLMError(f"ONNX Runtime's converter did not write {written.name}: {done.stderr.strip()[-500:]}")
        yield written


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print the table and save the record."""
    if not RUNNER.is_file():
        raise DeltaLLMError(f"{RUNNER} is missing: run 'make runner' first.")
    config = CONFIGS[options.config]
    folder = options.folder / options.config
    weights = write_weights(config, folder)
    record: dict[str, Any] = {
        "benchmark": "runner_memory",
        "command": "python -m bench.runner_memory " + " ".join(sys.argv[1:]),
        **environment(),
        "model": {"name": options.config, "weights_bytes": weights.stat().st_size, **dataclasses.asdict(config)},
        "context_tokens": options.context,
        "prompt_chunk": options.chunk,
        "decoded_tokens": options.steps,
        "threads": 1,
        "clock": "CPU time",
        "results": [],
    }

    def add(form: str, path: Path, contender: Contender) -> None:
        row = {"cache": contender.name, "form": form, "file_bytes": path.stat().st_size}
        record["results"].append(row | measure(path, contender, options, FORMS[form]))
        if options.record is not None:
            write_record(options.record / f"runner-memory-{options.config}.json", record)

    for number, name in enumerate(options.caches):
        contender = CACHES[name]
        forms = options.forms if number == 0 else options.forms[:1]
        model = write_graph(config, contender, folder)
        if ".onnx" in forms:
            add(".onnx", model, contender)
        others = [form for form in forms if form != ".onnx"]
        if others:
            with ort_file(model, contender) as path:
                for form in others:
                    add(form, path, contender)
    print(memory_table(record))
    return record


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = script_parser("bench.runner_memory", __doc__)
    parser.add_argument("--config", choices=tuple(CONFIGS), default="Llama-3.2-1B")
    parser.add_argument("--caches", nargs="+", choices=tuple(CACHES), default=["ours int8", "ours int4", "GQA float32"])
    parser.add_argument("--forms", nargs="+", choices=tuple(FORMS), default=list(FORMS))
    parser.add_argument("--context", type=int, default=4096, help="tokens in the cache at the end")
    parser.add_argument("--chunk", type=int, default=256, help="prompt tokens per call")
    parser.add_argument("--steps", type=int, default=16, help="decoded tokens")
    parser.add_argument("--folder", type=Path, default=_FOLDER, help="where the model is kept")
    parser.add_argument("--record", type=Path, metavar="DIR", help="write the record there, such as bench/records")
    options = parser.parse_args(arguments)
    if options.steps < 3 or options.chunk < 1:
        raise DeltaLLMError("Give 3 steps or more, and chunks of 1 token or more.")
    if options.context <= options.steps + 1:
        raise DeltaLLMError(f"context is {options.context}: give more tokens than the {options.steps} decoded ones.")
    check_record_folder(options.record)
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    with refusals():
        run(parse(arguments))


if __name__ == "__main__":
    main()
