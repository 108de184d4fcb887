"""Caches that hold a past: normal random rows, written by the operator itself where the format is its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from bench.contenders import QUANTISED, Contender, cache_layout, one_node_model
from bench.geometry import Geometry
from deltallm_onnx.runtime import huge_pages, register

Array = npt.NDArray[Any]
_SEED = 20250730


def filled_caches(contender: Contender, geometry: Geometry, past: int, capacity: int) -> tuple[Array, Array]:
    """Key and value cache [1, Hkv, capacity, last] with `past` tokens in them.

    Every KV head holds the same rows: they lie in memory of their own, and no timing depends on what else they are.
    With `half_held` every second key repeats the one before.
    """
    key, value = one_head_caches(contender, geometry, past, capacity)
    return for_every_head(key, geometry), for_every_head(value, geometry)


def for_every_head(head: Array, geometry: Geometry) -> Array:
    """A cache on huge pages with these rows in every KV head."""
    whole = huge_pages.zeros((1, geometry.kv_heads, *head.shape[2:]), head.dtype)
    whole[:] = head
    return whole


def one_head_caches(contender: Contender, geometry: Geometry, past: int, capacity: int) -> tuple[Array, Array]:
    """The same of a single KV head [1, 1, capacity, last]."""
    one_head = Geometry(geometry.name, 1, 1, geometry.head_size)
    filler = _from_operator if contender.ours else _from_normal
    return filler(contender, one_head, past, capacity)


def rows(count: int, width: int, seed: int, *, paired: bool = False) -> npt.NDArray[np.float32]:
    """Normal rows [1, count, width]; paired: rows 2i and 2i+1 are equal."""
    distinct = (count + 1) // 2 if paired else count
    made = np.random.default_rng(seed).standard_normal((1, distinct, width), dtype=np.float32)
    return np.ascontiguousarray(np.repeat(made, 2, axis=1)[:, :count]) if paired else made


def _from_normal(contender: Contender, geometry: Geometry, past: int, capacity: int) -> tuple[Array, Array]:
    dtype, last = cache_layout(contender, geometry)
    caches = []
    for seed in (_SEED, _SEED + 1):
        values = rows(past, geometry.head_size, seed)
        cache = np.zeros((1, 1, capacity, last), dtype)
        if contender.cache == "float32":
            cache[0, :, :past] = values
        elif contender.cache == "int8":
            cache[0, :, :past] = np.clip(np.rint(values / QUANTISED["int8"]), -127, 127)
        else:  # two codes of four bits in a byte, 8 standing for zero
            codes = (np.clip(np.rint(values / QUANTISED["int4"]), -8, 7) + 8).astype(np.uint8)
            cache[0, :, :past] = codes[..., 0::2] | codes[..., 1::2] << 4
        caches.append(cache)
    return caches[0], caches[1]


def _from_operator(contender: Contender, geometry: Geometry, past: int, capacity: int) -> tuple[Array, Array]:
    """One prompt of `past` tokens; the layout of a head depends on neither the other heads nor the threads."""
    dtype, last = cache_layout(contender, geometry)
    caches = (np.zeros((1, 1, capacity, last), dtype), np.zeros((1, 1, capacity, last), dtype))
    if past == 0:
        return caches
    options = ort.SessionOptions()
    register(options)
    session = ort.InferenceSession(one_node_model(contender, geometry), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    inputs = {
        "query": rows(past, geometry.head_size, _SEED + 2),
        "key": rows(past, geometry.head_size, _SEED, paired=contender.half_held),
        "value": rows(past, geometry.head_size, _SEED + 1),
        "seqlens_k": np.array([past - 1], np.int32),
        "total": np.array([past], np.int32),
    }
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)
    for name, cache in zip(("key", "value"), caches, strict=True):
        value = ort.OrtValue.ortvalue_from_numpy(cache)
        binding.bind_ortvalue_input(f"past_{name}", value)
        binding.bind_ortvalue_output(f"present_{name}", value)
    binding.bind_output("output")
    session.run_with_iobinding(binding)
    return caches
