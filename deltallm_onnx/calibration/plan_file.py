"""Read the configuration and the plan out of a calibration's result, `deltallm.json`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import onnx_ir as ir

from deltallm_onnx.attention_plan import AttentionPlan
from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.weights_digest import weights_sha256

#: What a result says of itself.
FORMAT, VERSION = "deltallm-calibration", 1
#: No result comes near this; what is larger is another file.
LARGEST_BYTES = 1 << 28


def load_plan(path: Path) -> tuple[DeltaConfig, AttentionPlan]:
    """The global settings and the thresholds per layer that a calibration found.

    Raises:
        DeltaLLMError: for a file that cannot be read, is no JSON, or is no calibration of this version, and for
            settings and thresholds out of range, naming the layer and the field.
    """
    data = read_calibration(path)
    return DeltaConfig.from_dict(data["config"], f"{path}, config"), AttentionPlan.from_dict(data, str(path))


@dataclasses.dataclass(frozen=True)
class PlanOrigin:
    """The model that a plan was found for.

    Attributes:
        name: as it was given to the calibration.
        weights_sha256: as by `weights_sha256`.
    """

    name: str
    weights_sha256: str

    def notes(self, model: ir.Model) -> tuple[str, ...]:
        """What to say where the plan is given to a model with other weights.

        Args:
            model: dense, and not changed yet.
        """
        if weights_sha256(model) == self.weights_sha256:
            return ()
        note = (
            f"The plan was calibrated on other weights than these (those of {self.name}): what it costs here was not "
            "measured, so check it with 'deltallm-onnx eval', or calibrate this model."
        )
        return (note,)


def load_origin(path: Path) -> PlanOrigin | None:
    """The model that a calibration was made of; None where its file does not say.

    Raises:
        DeltaLLMError: as `read_calibration`.
    """
    model = read_calibration(path).get("model")
    if not isinstance(model, dict):
        return None
    name, digest = model.get("name"), model.get("weights_sha256")
    return PlanOrigin(name, digest) if isinstance(name, str) and isinstance(digest, str) else None


def read_calibration(path: Path) -> dict[str, Any]:
    """The JSON object of a calibration's result; only format, version and the keys of a plan are checked.

    Raises:
        DeltaLLMError: as `load_plan`, but for what stands behind the keys.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
        if len(content) > LARGEST_BYTES:
            raise DeltaLLMError(
                f"{path} has more than {LARGEST_BYTES} bytes, which no calibration has: give the deltallm.json that "
                "one wrote."
            )
        data = json.loads(content.decode("utf-8"), object_pairs_hook=_object)
    except OSError as error:
        raise DeltaLLMError(
            f"Cannot read the calibration {path} ({error.strerror}): give the file that 'deltallm-onnx calibrate' "
            "wrote."
        ) from error
    except UnicodeDecodeError as error:
        raise DeltaLLMError(f"Cannot read the calibration {path}: it is not UTF-8 text; calibrate again.") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise DeltaLLMError(f"The calibration {path} is not JSON ({error}): calibrate again.") from error
    except ValueError as error:
        raise DeltaLLMError(f"The calibration {path} has a fault ({error}): calibrate again.") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise DeltaLLMError(f"{path} is no calibration (format {FORMAT!r}): give the deltallm.json that one wrote.")
    version = data.get("version")
    if version != VERSION or isinstance(version, bool):
        raise DeltaLLMError(
            f"The calibration {path} has version {version!r}, and this deltallm-onnx reads version {VERSION}: "
            "calibrate again."
        )
    for key in ("config", "layers"):
        if key not in data:
            raise DeltaLLMError(f"The calibration {path} has no {key!r}: it is cut short, so calibrate again.")
    return data


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of two values under one key, readers differ in which they take."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} appears twice in one object")
    return found
