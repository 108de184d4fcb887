"""The least time a call can take on this machine: its bytes at the measured bandwidth, its operations at the peak."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.layer import Layer

_SOURCE = Path(__file__).with_name("machine_rates.cc")
_BUILD = Path(__file__).resolve().parents[1] / "build" / "bench"


@dataclasses.dataclass(frozen=True)
class Work:
    """What a call has to move and to compute.

    Attributes:
        bytes: keys and values it has to read; in a prompt also its inputs and outputs.
        operations: multiplications and additions of QK and of PV.
    """

    bytes: float
    operations: tuple[float, float]

    def least_seconds(self, rates: Mapping[str, float | None], arithmetic: tuple[str, str]) -> float | None:
        """The larger of the two bounds; None where the machine has no such arithmetic.

        Args:
            rates: `machine_rates` for the number of threads.
            arithmetic: of QK and of PV.
        """
        bandwidth = rates["read_bytes"]
        computing = 0.0
        for operations, kind in zip(self.operations, arithmetic, strict=True):
            peak = rates[f"{kind}_operations"]
            if peak is None:
                return None
            computing += operations / peak
        return None if bandwidth is None else max(self.bytes / bandwidth, computing)


def machine_rates(threads: Sequence[int]) -> dict[str, dict[str, float | None]] | None:
    """Bytes read and operations per second by number of threads; None without a C++ compiler.

    Keys of each: read_bytes, float32_operations, bfloat16_operations, int8_operations; an instruction the machine
    lacks is None.
    """
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        return None
    _BUILD.mkdir(parents=True, exist_ok=True)
    program = _BUILD / "machine_rates"
    options = ["-O3", "-march=native", "-std=c++17", "-pthread"]
    subprocess.run([compiler, *options, str(_SOURCE), "-o", str(program)], check=True)  # noqa: S603  # our own source
    counts = [str(count) for count in threads]
    done = subprocess.run([str(program), *counts], check=True, capture_output=True, text=True)  # noqa: S603  # the same
    rates: dict[str, dict[str, float | None]] = json.loads(done.stdout)
    return rates


def work_of(layer: Layer, statistics: npt.NDArray[np.int64] | None) -> Work:
    """Bytes and operations of one call of a layer.

    Args:
        layer: the layer.
        statistics: of one decode step [Hkv, 8], for an operator that counts (docs/spec.md section 6): merged rows are
            neither read nor multiplied.
    """
    setting, geometry = layer.setting, layer.geometry
    if statistics is not None and setting.new == 1 and setting.past > 0:
        counts = statistics.sum(axis=0)
        # The cache it was counted on is shorter than the average one of the measurement.
        longer = (setting.past + 1) / (setting.first_past + 1)
        qk, pv = counts[2] - counts[3], counts[4] - counts[5]
        return Work(float(counts[7] * longer), (float(2 * qk * longer), float(2 * pv * longer)))
    cached = layer.cache_bytes / layer.capacity * (setting.past + setting.new)
    given = 4 * setting.new * 2 * (geometry.heads + geometry.kv_heads) * geometry.head_size if setting.new > 1 else 0
    pairs = setting.new * setting.past + setting.new * (setting.new + 1) // 2
    operations = 2.0 * geometry.heads * geometry.head_size * pairs
    return Work(cached + given, (operations, operations))
