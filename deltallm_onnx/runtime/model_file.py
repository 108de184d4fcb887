"""Read an .onnx file without its weights, refusing what is not a sound model."""

from __future__ import annotations

from pathlib import Path

import onnx

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.external_data import check_external_data

#: Of models in ONNX Runtime's own format.
ORT_SUFFIX = ".ort"


def check_model_path(path: Path) -> None:
    """Refuse what is no file.

    Raises:
        DeltaLLMError: for a directory, and where there is nothing.
    """
    if path.is_dir():
        raise DeltaLLMError(f"{path} is a directory: name the .onnx file in it.")
    if not path.is_file():
        raise DeltaLLMError(f"There is no file {path}: give the path of an .onnx or .ort model.")


def refuse_ort_format(path: Path) -> None:
    """Refuse an .ort where a graph is needed that can be changed, or compared with others.

    Raises:
        DeltaLLMError: by the suffix, as ONNX Runtime itself tells the format.
    """
    if path.suffix == ORT_SUFFIX:
        raise DeltaLLMError(
            f"{path} is in ONNX Runtime's own format: give the .onnx it was made from (run, bench and a plain inspect "
            "take the .ort itself)."
        )


def read_model_file(path: Path) -> onnx.ModelProto:
    """Parse the graph; tensors in external files stay there, checked but not loaded.

    Args:
        path: an .onnx file.

    Raises:
        DeltaLLMError: for a missing or unreadable file, for one that is not an ONNX model or is cut short, for one in
            ONNX Runtime's own format, and for external data outside its directory (`check_external_data`).
    """
    check_model_path(path)
    refuse_ort_format(path)
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except OSError as error:
        raise DeltaLLMError(f"Cannot read {path}: {error.strerror or error}.") from error
    except Exception as error:  # protobuf is untyped, and its exceptions differ between its implementations
        raise DeltaLLMError(
            f"{path} is not an ONNX model, or is cut short: write it again or copy it again."
        ) from error
    if not model.opset_import or not model.graph.node:
        raise DeltaLLMError(f"{path} is not an ONNX model, or is cut short: it holds no graph with nodes.")
    check_external_data(model, path.resolve().parent)
    return model
