"""Where a model comes from: a local directory, checked before anything is loaded, or a snapshot from the hub."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.export.quiet import first_line, quiet

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
#: What is fetched from the hub: no pickles, no code.
_HUB_PATTERNS = ("*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model", "*.tiktoken")
#: The same weights in other layouts, and whatever lies in subfolders.
_HUB_IGNORED = ("consolidated*", "*/*")
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """A checked model directory.

    Attributes:
        directory: holds config.json and safetensors weights.
        name: what the user called it.
        config: config.json, parsed.
        weights: the safetensors files, sorted.
    """

    directory: Path
    name: str
    config: dict[str, Any]
    weights: tuple[Path, ...]

    @property
    def model_type(self) -> str:
        """Name of the architecture in transformers."""
        return str(self.config["model_type"])


def find_model(model: str | Path, say: Callable[[str], None]) -> ModelSource:
    """Check a local directory, or fetch a hub id.

    Args:
        model: a directory; or, as a string that names no directory, a hub id such as "owner/name".
        say: receives progress lines.

    Raises:
        DeltaLLMError: if it cannot be found, is incomplete, holds its weights only as pickles, needs code of its own,
            or holds a broken safetensors file.
    """
    path = Path(model)
    if path.is_dir():
        return _check_directory(path, str(model))
    if path.exists():
        raise DeltaLLMError(f"{model} is a file: give the directory that holds config.json and the weights.")
    if isinstance(model, Path) or not _HUB_ID.fullmatch(model):
        raise DeltaLLMError(f"There is no model directory {model}: give a directory or a hub id such as owner/name.")
    say(f"Fetching {model} from the hub")
    return _check_directory(_fetch(model), model)


def _fetch(hub_id: str) -> Path:
    import huggingface_hub  # noqa: PLC0415 - only needed for hub ids, part of the export extra

    try:
        with quiet():
            snapshot = huggingface_hub.snapshot_download(
                hub_id, allow_patterns=list(_HUB_PATTERNS), ignore_patterns=list(_HUB_IGNORED)
            )
            return Path(snapshot)
    except Exception as error:
        raise DeltaLLMError(
            f"There is no directory {hub_id!r}, and the hub did not give a model of that name ({first_line(error)}): "
            "check the name, the network and your access."
        ) from error


def _check_directory(directory: Path, name: str) -> ModelSource:
    if (directory / "adapter_config.json").exists():
        raise DeltaLLMError(f"{name} is an adapter (adapter_config.json): merge it into its base model first.")
    config = read_json(
        directory / "config.json", f"{name} has no config.json, so it is no Hugging Face model directory."
    )
    if not isinstance(config.get("model_type"), str):
        raise DeltaLLMError(f"{directory / 'config.json'} names no model_type: it cannot be loaded.")
    return ModelSource(directory, name, config, _check_weights(directory, name))


def read_json(path: Path, missing: str) -> dict[str, Any]:
    """One JSON object from a file.

    Args:
        path: the file.
        missing: sentence for the refusal if there is no such file.

    Raises:
        DeltaLLMError: if it is missing, unreadable or not a JSON object.
    """
    if not path.is_file():
        raise DeltaLLMError(missing)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DeltaLLMError(f"Cannot read {path}: {first_line(error)}.") from error
    if not isinstance(data, dict):
        raise DeltaLLMError(f"{path} holds no JSON object: it cannot be loaded.")
    return data


def _check_weights(directory: Path, name: str) -> tuple[Path, ...]:
    """The safetensors files transformers will read, each with a sound header."""
    index = directory / "model.safetensors.index.json"
    single = directory / "model.safetensors"
    if single.is_file():
        files = [single]
    elif index.is_file():
        weight_map = read_json(index, "").get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise DeltaLLMError(f"{index} has no weight_map: the checkpoint is incomplete.")
        files = [_shard(directory, index, str(shard)) for shard in sorted(set(map(str, weight_map.values())))]
    elif any(True for pattern in _PICKLES for _ in directory.glob(pattern)):
        raise DeltaLLMError(
            f"{name} has its weights only as pickles, which could run code when loaded: save it as safetensors first."
        )
    else:
        raise DeltaLLMError(f"{name} has no weights: model.safetensors is missing.")
    for file in files:
        _check_header(file)
    return tuple(files)


def _shard(directory: Path, index: Path, shard: str) -> Path:
    if Path(shard).name != shard or not shard.endswith(".safetensors"):
        raise DeltaLLMError(f"{index} names the shard {shard!r}, which is not a safetensors file beside it.")
    if not (directory / shard).is_file():
        raise DeltaLLMError(f"{directory} lacks the shard {shard}: download the checkpoint again.")
    return directory / shard


def _check_header(file: Path) -> None:
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415 - part of the export extra

    try:
        with safe_open(file, framework="np") as opened:  # checks header, offsets and file size
            opened.keys()
    except (SafetensorError, OSError) as error:
        raise DeltaLLMError(
            f"{file} is not a sound safetensors file ({first_line(error)}): download it again."
        ) from error


@contextmanager
def offline() -> Iterator[None]:
    """Whatever transformers does inside, it must not reach for the network: the files are here."""
    from huggingface_hub import constants  # noqa: PLC0415 - part of the export extra

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
