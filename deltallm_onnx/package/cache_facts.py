"""The numbers of a model's caches that an app must know, and the memory that a context takes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from deltallm_onnx.byte_text import byte_text
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.genai_folder import GENAI_CONFIG
from deltallm_onnx.memory.plan import MemoryPlan, plan_memory
from deltallm_onnx.package.model_set import ModelSet
from deltallm_onnx.runtime.side_files import context_length, read_json

#: A device seldom has room for the context of a large model.
_MOST_TOKENS = 4096
#: Without a configuration.
_USUAL_TOKENS = 1024
_CHUNK = 128


@dataclasses.dataclass(frozen=True)
class CacheGroup:
    """Layers whose caches have one shape.

    Attributes:
        layers: their indices, in order.
        kv_heads: Hkv.
        rows: capacity for the planned context.
        row_size: size of the last axis: channels, or bytes of a packed cache.
        dtype: element type, as numpy names it.
        fixed: whether the model fixes the rows.
    """

    layers: tuple[int, ...]
    kv_heads: int
    rows: int
    row_size: int
    dtype: str
    fixed: bool


@dataclasses.dataclass(frozen=True)
class CacheFacts:
    """What `cache_facts` found.

    Attributes:
        context: tokens that everything here is for.
        groups: the caches, layers of one shape together.
        whole: the memory plan with the prompt in one call.
        chunked: the same with the prompt in calls of `chunk` tokens; None where the context is no longer.
        chunk: tokens per call.
    """

    context: int
    groups: tuple[CacheGroup, ...]
    whole: MemoryPlan
    chunked: MemoryPlan | None
    chunk: int = _CHUNK

    @property
    def memory_line(self) -> str:
        """The plan in one sentence."""
        plan = self.whole
        parts = {
            "weights": plan.weights.resident,
            "caches": plan.held_bytes,
            "logits": plan.call.logits,
            "activations": plan.working_bytes,
            "ONNX Runtime": plan.runtime_bytes,
        }
        line = f"{self.context} tokens take at most {byte_text(plan.total_bytes)} beside the program itself ("
        line += ", ".join(f"{name} {byte_text(size)}" for name, size in parts.items())
        line += ") with the prompt in one call"
        if self.chunked is not None:
            line += f", and {byte_text(self.chunked.total_bytes)} with the prompt in calls of {self.chunk} tokens"
        return f"{line}."


def cache_facts(model: ModelSet, context: int | None) -> CacheFacts:
    """Plan the memory of a model and list its caches.

    Args:
        model: the model.
        context: tokens; None takes the model's context, at most 4096.

    Raises:
        DeltaLLMError: for a context below 1, and one that fixed cache rows have no room for.
    """
    tokens = _default_context(model.folder) if context is None else context
    if tokens < 1:
        raise DeltaLLMError(f"context is {tokens}: give a whole number of at least 1.")
    groups: dict[tuple[int, int, int, str, bool], set[int]] = {}
    for index, cache in enumerate(model.signature.caches):
        shape = cache.kv_heads, cache.capacity_for(tokens), cache.last, str(cache.dtype), cache.rows is not None
        groups.setdefault(shape, set()).add(index // 2)
    return CacheFacts(
        context=tokens,
        groups=tuple(CacheGroup(tuple(sorted(layers)), *shape) for shape, layers in groups.items()),
        whole=plan_memory(model.path, tokens),
        chunked=plan_memory(model.path, tokens, prompt_chunk=_CHUNK) if tokens > _CHUNK else None,
    )


def _default_context(folder: Path) -> int:
    """Of the configurations the smaller: fixed cache rows are made for genai_config.json's."""
    lengths = [context_length(folder)]
    section = read_json(folder / GENAI_CONFIG).get("model")
    if isinstance(section, dict):
        lengths.append(section.get("context_length"))
    known = [n for n in lengths if isinstance(n, int) and not isinstance(n, bool) and n > 0]
    return min([*known, _MOST_TOKENS]) if known else _USUAL_TOKENS
