"""Structural comparison of two ONNX models: nodes are matched by what they do, not by their names.

    from deltallm_onnx.diff import diff
    print(diff("dense.onnx", "out.onnx").to_text())

See docs/diff.md for what counts as a difference and how nodes are matched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from deltallm_onnx.diff.compare import Options
from deltallm_onnx.diff.load import ModelSource, load
from deltallm_onnx.diff.models import ModelView, compare_models
from deltallm_onnx.diff.report import Change, Detail, GraphDiff
from deltallm_onnx.errors import DeltaLLMError

__all__ = ["IGNORABLE", "Change", "Detail", "GraphDiff", "diff"]

#: What `diff` can be told to ignore.
IGNORABLE: tuple[str, ...] = tuple(field.name for field in dataclasses.fields(Options))


def diff(a: ModelSource, b: ModelSource, *, ignore: Collection[str] = ()) -> GraphDiff:
    """Compare two models by structure.

    Names of nodes, values and initializers, the order of nodes, and doc strings of nodes never count. External data is
    never read: it is compared by type, shape and where it lies. Neither model is changed.

    Args:
        a: the first model: path of an ONNX file, ir.Model or ModelProto.
        b: the second model.
        ignore: any of
            "names": names of graph inputs and outputs and of their symbolic dimensions (else they always count);
            "metadata": producer, model version, doc strings and metadata_props of model and graph;
            "initializers": which initializers there are, their data and where they are stored; as operands they then
            count by type and shape only;
            "shapes": shapes of graph inputs and outputs;
            "storage": whether and in which file initializers are stored externally.

    Returns:
        The differences from a to b. `diff(b, a)` is `diff(a, b).mirrored()`.

    Raises:
        DeltaLLMError: for a missing, truncated or malformed model, and for an unknown word in `ignore`.
    """
    if isinstance(ignore, str):
        raise DeltaLLMError(f"ignore is the text {ignore!r}: give a list of words.")
    unknown = sorted(set(ignore) - set(IGNORABLE))
    if unknown:
        raise DeltaLLMError(f"Cannot ignore {unknown[0]!r}: choose among {', '.join(IGNORABLE)}.")
    options = Options(**dict.fromkeys(ignore, True))
    contents = not options.initializers
    left = ModelView.of(load(a, "the first model"), contents=contents)
    right = ModelView.of(load(b, "the second model"), contents=contents)
    return compare_models(left, right, options)
