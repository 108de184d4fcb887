"""What runs inside .venv-optimum: exports with optimum-onnx, and generation with its `ORTModelForCausalLM`.

Called as a program by support.optimum_environment, for many models at once: importing torch takes longer than any of
them. Imports of optimum stay inside: its constants are read in the other environment too.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from support import hf_reference, scenario_files
from support.optimum_models import MODELS
from support.tiny_models import save_config

from deltallm_onnx.export.quiet import quiet
from deltallm_onnx.runtime import ops_library_path

NEW_TOKENS = 64
#: Two prompts of different lengths: the shorter is padded on the left, as `generate` wants it.
PROMPTS = ((11, 47, 5, 29, 71, 13, 3, 60, 23), (8, 19, 77, 34, 6))
#: What becomes of a job that failed, in place of its result.
ERROR_SUFFIX = ".error"


def export(name: str, folder: Path) -> None:
    """Make a tiny random model and export it.

    Args:
        name: a key of `MODELS`.
        folder: gets source/ (safetensors), onnx/ (optimum's export) and eager.npz (transformers' eager attention on
            the scenarios of support.hf_reference).
    """
    import transformers  # noqa: PLC0415 - see the top
    from optimum.exporters.onnx import onnx_export_from_model  # noqa: PLC0415 - the same

    tiny = MODELS[name]
    save_config(transformers.CONFIG_MAPPING[tiny.model_type](**tiny.sizes), folder / "source", tiny.seed)
    scenario_files.save(folder / "eager.npz", hf_reference.scenarios(hf_reference.load_eager(folder / "source")))
    with quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder / "source", attn_implementation=tiny.attention, local_files_only=True
        )
        onnx_export_from_model(model, folder / "onnx", task="text-generation-with-past", do_validation=False)


def generate(model: Path, library: bool, out: Path) -> None:
    """Greedy tokens [2, 64] and their logits [64, 2, V] from `ORTModelForCausalLM`, as .npz.

    Args:
        model: a folder with model.onnx and config.json.
        library: register the operator library; else the model's own functions must do.
        out: the file to write.
    """
    from optimum.onnxruntime import ORTModelForCausalLM  # noqa: PLC0415 - see the top

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if library:
        options.register_custom_ops_library(str(ops_library_path()))
    length = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (length - len(prompt)) + list(prompt) for prompt in PROMPTS])
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    with quiet():
        causal_lm = ORTModelForCausalLM.from_pretrained(model, session_options=options)
        generated = causal_lm.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            output_logits=True,
            return_dict_in_generate=True,
        )
    tokens = generated.sequences[:, length:].numpy()
    np.savez(out, tokens=tokens, logits=np.stack([logits.numpy() for logits in generated.logits]))


def _attempt(work: Callable[..., None], *arguments: Any, out: Path) -> None:
    """One model's failure is its own test's: write it down, and go on with the others."""
    try:
        work(*arguments)
    except Exception:  # noqa: BLE001 - whatever it is, the test shows it
        out.with_name(out.name + ERROR_SUFFIX).write_text(traceback.format_exc())


def main(arguments: Sequence[str]) -> None:
    """`export FOLDER NAME…` or `generate JOBS.json`, a list of {"model", "library", "out"}."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    exporting = commands.add_parser("export")
    exporting.add_argument("folder", type=Path)
    exporting.add_argument("names", nargs="+")
    commands.add_parser("generate").add_argument("jobs", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if given.command == "export":
        for name in given.names:
            _attempt(export, name, given.folder / name, out=given.folder / name)
    else:
        for job in json.loads(given.jobs.read_text()):
            _attempt(generate, Path(job["model"]), job["library"], Path(job["out"]), out=Path(job["out"]))


if __name__ == "__main__":
    main(sys.argv[1:])
