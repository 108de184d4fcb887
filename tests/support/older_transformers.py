"""What runs with the transformers 4 of the peer "optimum": our own exporter, and that version's eager attention."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from support import hf_reference, scenario_files
from support.tiny_models import ARCHITECTURES, save_config, save_tiny

import deltallm_onnx
from deltallm_onnx import DeltaLLMError, profile


def longrope() -> Any:
    """Phi-3 with the long context, as configurations of transformers 4 write it."""
    config = ARCHITECTURES["phi3"]()
    config.original_max_position_embeddings = 16
    config.rope_scaling = {"type": "longrope", "short_factor": [1.1] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0]}
    return config


def main(folder: Path, names: Sequence[str]) -> None:
    """Convert tiny models of support.tiny_models, θ = 0 with a float32 cache.

    Args:
        folder: gets, for each name, a folder with model/ (Hugging Face), eager.npz (scenarios of support.hf_reference)
            and out/model.onnx, or refusal.txt.
        names: keys of `tiny_models.ARCHITECTURES`, or "longrope".
    """
    torch.set_num_threads(1)
    (folder / "version.txt").write_text(transformers.__version__)
    for name in names:
        here = folder / name
        if name == "longrope":
            save_config(longrope(), here / "model")
        else:
            save_tiny(name, here / "model")
        scenario_files.save(here / "eager.npz", hf_reference.scenarios(hf_reference.load_eager(here / "model")))
        (here / "out").mkdir()
        config = profile("exact").replace(window=3, sinks=1)
        try:
            deltallm_onnx.convert(here / "model", here / "out" / "model.onnx", config, statistics=False)
        except DeltaLLMError as refusal:
            (here / "refusal.txt").write_text(str(refusal))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
