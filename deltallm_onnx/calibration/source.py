"""The model of a calibration: a dense .onnx, or a Hugging Face model that is traced first."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx_ir as ir

from deltallm_onnx.calibration.meter import files_sha256
from deltallm_onnx.dense_model import open_dense_model
from deltallm_onnx.genai_folder import read_genai_folder
from deltallm_onnx.model_folder import find_model
from deltallm_onnx.runtime.side_files import context_length
from deltallm_onnx.scratch_folder import scratch_folder
from deltallm_onnx.weights.quantised import quantised_operators
from deltallm_onnx.weights_digest import weights_sha256


@dataclasses.dataclass(frozen=True)
class ModelFiles:
    """A dense model on disk.

    Attributes:
        dense: the .onnx file; tokenizer and configurations lie beside it.
        name: as the user gave it.
        sha256: of the .onnx file and its data files, in hex.
        weights_sha256: of the weights alone, which a model traced under another name has too.
        context: the model's context length in tokens, if known.
        quantised: operators that take quantised weights, see `quantised_operators`; empty for a model traced here, as
            tracing loses nothing.
    """

    dense: Path
    name: str
    sha256: str
    weights_sha256: str
    context: int | None
    quantised: str = ""

    @classmethod
    def of(cls, dense: Path, name: str) -> ModelFiles:
        """Of an .onnx file.

        Raises:
            DeltaLLMError: for a file that is no sound model.
        """
        opened = open_dense_model(dense)
        digest = files_sha256([dense, *opened.data_files])
        found = quantised_operators(node.op_type for node in ir.traversal.RecursiveGraphIterator(opened.model.graph))
        return cls(dense, name, digest, weights_sha256(opened.model), context_length(dense.parent), found)

    @property
    def note(self) -> str:
        """What to say of quantised weights; empty where there are none."""
        return (
            f"{self.name} has quantised weights ({self.quantised}), and it is the baseline: what is measured is what "
            "delta attention costs on top of them, not what quantising them cost."
            if self.quantised
            else ""
        )

    def to_dict(self) -> dict[str, str]:
        """For the result."""
        return {"name": self.name, "sha256": self.sha256, "weights_sha256": self.weights_sha256}


@contextlib.contextmanager
def opened_model(model: str, scratch: Path, say: Callable[[str], None]) -> Iterator[ModelFiles]:
    """The dense form of a model, while the block runs.

    Args:
        model: an .onnx file, a folder with one, a Hugging Face model directory, or a hub id.
        scratch: an existing folder, in which a traced model lies meanwhile.
        say: receives one line per step.

    Raises:
        DeltaLLMError: for a model that cannot be read or traced.
    """
    path = Path(model)
    if path.is_dir() and any(path.glob("*.onnx")):
        yield ModelFiles.of(find_model(path, read_genai_folder(path)), model)
    elif path.is_file() or path.suffix == ".onnx":
        yield ModelFiles.of(path, model)
    else:
        from deltallm_onnx.export import export_model  # noqa: PLC0415 - only a model to trace needs torch

        with scratch_folder(scratch, "calibrate") as folder:
            dense = folder / "dense.onnx"
            # The user knows nothing of the file that is traced meanwhile.
            export_model(model, dense, progress=lambda line: say(line.replace(f"Writing {dense}", "Writing its graph")))
            yield dataclasses.replace(ModelFiles.of(dense, model), quantised="")
