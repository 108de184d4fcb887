"""What the user asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal, get_args

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.ort_format import OrtForm

#: The model as .onnx, in ONNX Runtime's own format, or as both.
ModelFormat = Literal["onnx", "ort", "both"]


@dataclasses.dataclass(frozen=True)
class PackageRequest:
    """The arguments of `package_model`.

    Attributes:
        model: a rewritten .onnx file.
        target: name of the target, one of `TARGETS`.
        out: the folder to write: new, or empty.
        model_format: the files to write of the model.
        ort_form: what an .ort has in place of delta attention: the operator, or its function body, written out.
        library: the operator library for the target; None looks for one.
        runner: the C++ runner for the target; None takes the one that was built here, if any.
        onnxruntime: ONNX Runtime's shared library for the target, to be packaged too.
        context: tokens that the memory plan is for; None is the model's context, at most 4096.

    Raises:
        DeltaLLMError: for an unknown format or form, and a form without an .ort.
    """

    model: Path
    target: str
    out: Path
    model_format: ModelFormat = "onnx"
    ort_form: OrtForm | None = None
    library: Path | None = None
    runner: Path | None = None
    onnxruntime: Path | None = None
    context: int | None = None

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("format", self.model_format, get_args(ModelFormat)),
            ("ort-form", self.ort_form, (None, *get_args(OrtForm))),
        ):
            if value not in choices:
                known = ", ".join(str(choice) for choice in choices if choice)
                raise DeltaLLMError(f"There is no {name} {value!r}: choose one of {known}.")
        if self.ort_form is not None and not self.writes_ort:
            raise DeltaLLMError(f"ort-form {self.ort_form} says how an .ort is made: give --format ort or both too.")
        if self.library is not None and not self.needs_library:
            raise DeltaLLMError(
                "An .ort of the form fallback calls no operator library: leave out --library, or the form."
            )

    @property
    def writes_onnx(self) -> bool:
        """Whether the package has the .onnx."""
        return self.model_format in ("onnx", "both")

    @property
    def writes_ort(self) -> bool:
        """Whether the package has an .ort."""
        return self.model_format in ("ort", "both")

    @property
    def form(self) -> OrtForm:
        """Of the .ort."""
        return self.ort_form or "operator"

    @property
    def needs_library(self) -> bool:
        """Whether a file of the package calls the operators."""
        return self.writes_onnx or self.form == "operator"
