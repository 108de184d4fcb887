"""Refuse what will not fit, before work starts: memory for an export, disk for what is written.

The promise: an export takes no more memory than its float32 weights and one gigabyte, whatever format they are written
in. Files grow in a folder beside the output, so its file system is the only one that needs room.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from deltallm_onnx.byte_text import byte_text
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.weights.formats import WeightFormat

#: Python, torch and transformers, the graph, and what is made of one tensor at a time.
BESIDE_WEIGHTS = 10**9
#: The .onnx file, tokenizer and configurations.
BESIDE_DATA = 64 * 10**6

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


@dataclasses.dataclass(frozen=True)
class StoredShape:
    """A tensor of a safetensors header.

    Attributes:
        shape: of the tensor.
        is_float: F64, F32, F16, BF16 …; everything else stays as it is stored.
        item_bytes: per element.
    """

    shape: tuple[int, ...]
    is_float: bool
    item_bytes: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def stored_shapes(files: Sequence[Path]) -> dict[str, StoredShape]:
    """The tensors of safetensors files by name, from their headers.

    Args:
        files: sound safetensors files; a name in two files is the later one's.
    """
    from safetensors import safe_open  # noqa: PLC0415 - part of the export extra

    shapes = {}
    for file in files:
        with safe_open(file, framework="np") as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping
                stored = opened.get_slice(name)
                kind = str(stored.get_dtype())
                bits = int("".join(filter(str.isdigit, kind.split("_", maxsplit=1)[0])) or 8)
                shapes[name] = StoredShape(tuple(stored.get_shape()), "F" in kind, math.ceil(bits / 8))
    return shapes


def ternary_shapes(shapes: Mapping[str, StoredShape], bits: int) -> dict[str, StoredShape]:
    """What becomes of the tensors of a BitNet checkpoint.

    Args:
        shapes: of the checkpoint: packed matrices with four rows to a byte, or float ones named "…_proj.weight".
        bits: of the codes that the ternary matrices become; 0 for float32.
    """
    made = dict(shapes)
    for name, tensor in shapes.items():
        packed = not tensor.is_float and tensor.item_bytes == 1
        if len(tensor.shape) == 2 and (packed or name.endswith("_proj.weight")):
            N, K = tensor.shape[0] * (4 if packed else 1), tensor.shape[1]
            # pilots and padding add a few channels (export/ternary.py)
            made[name] = StoredShape((N, (K + K // 16) * bits // 8), False, 1) if bits else StoredShape((N, K), True, 4)
    return made


def export_memory(shapes: Mapping[str, StoredShape]) -> int:
    """Bytes of memory that an export of these tensors takes at most: all floats become float32."""
    sizes = (tensor.size * (4 if tensor.is_float else tensor.item_bytes) for tensor in shapes.values())
    return sum(sizes) + BESIDE_WEIGHTS


def export_disk(shapes: Mapping[str, StoredShape], weight_format: WeightFormat) -> int:
    """Bytes on disk that an export of these tensors takes at most."""
    per_weight = {"float32": 4.0, "float16": 2.0}.get(weight_format.name, 4.0)
    if weight_format.bits:
        # a float32 scale, and a zero point of a byte or less, per block
        per_weight = weight_format.bits / 8 + 5 / int(weight_format.block_size or 1)
    size = BESIDE_DATA
    for tensor in shapes.values():
        if not tensor.is_float:
            size += tensor.size * tensor.item_bytes
        elif len(tensor.shape) == 2:
            # rows are filled up to whole blocks
            K = math.ceil(tensor.shape[1] / (weight_format.block_size or 1)) * (weight_format.block_size or 1)
            size += math.ceil(tensor.shape[0] * K * per_weight)
        else:
            size += tensor.size * 4
    return size


def check_memory(needed: int, what: str) -> None:
    """Refuse work that needs more memory than there is.

    Args:
        needed: bytes.
        what: the work, as the subject of the sentence.

    Raises:
        DeltaLLMError: saying both numbers.
    """
    available = available_memory()
    if available is not None and needed > available:
        raise DeltaLLMError(
            f"{what} needs up to {byte_text(needed)} of memory, and {byte_text(available)} are available: close "
            "other programs, or use a machine with more."
        )


def check_disk(folder: Path, needed: int, what: str) -> None:
    """Refuse to write more than a folder has room for.

    Args:
        folder: where the files go, and grow; it exists.
        needed: bytes.
        what: the work, as the subject of the sentence.

    Raises:
        DeltaLLMError: saying both numbers.
    """
    free = free_disk(folder)
    if needed > free:
        raise DeltaLLMError(
            f"{what} takes up to {byte_text(needed)} on disk, and {folder} has {byte_text(free)} left: free some, or "
            "give another output path."
        )


def available_memory() -> int | None:
    """Bytes that this process can still take, by the system and its control groups; None if that is not known."""
    try:
        import psutil  # noqa: PLC0415 - part of the export extra, which alone needs much memory
    except ImportError:
        return None
    available = int(psutil.virtual_memory().available)
    return min([available, *_cgroup_rooms()])


def free_disk(folder: Path) -> int:
    """Bytes that this user may still write to the file system of a folder."""
    return shutil.disk_usage(folder).free


def _cgroup_rooms() -> list[int]:
    """What is left of every memory limit above this process: containers and batch systems set them."""
    rooms = []
    try:
        lines = _OWN_CGROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            root = _CGROUP_ROOT / controllers
            folder = root / path.strip("/")
            # A container may see its own group as the root, under a path of the host.
            for group in (folder, *folder.parents) if folder.is_relative_to(root) else (root,):
                if group.is_relative_to(root):
                    rooms += _room(group)
    return rooms


def _room(group: Path) -> list[int]:
    """The room in one control group, version 2 or 1; none if it has no limit."""
    for limit_name, usage_name, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit, usage = _number(group / limit_name), _number(group / usage_name)
        if limit is not None and usage is not None:
            return [max(0, limit - usage + _statistic(group / "memory.stat", cache))]
    return []


def _number(path: Path) -> int | None:
    """The number in a file; None where there is no such file, or "max" in it."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _statistic(path: Path, name: str) -> int:
    """One entry of memory.stat: pages of files that the kernel drops when memory is short."""
    try:
        for line in path.read_text(encoding="ascii").splitlines():
            if line.split()[0] == name:
                return int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return 0
