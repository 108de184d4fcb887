"""How an export gets hold of every attention layer: transformers' attention interface and cache.

A model that uses the interface computes, per layer, `cache.update(k, v, layer)` and then `attention(q, k, v, mask)`.
Both ends are ours during an export: the cache hands the new keys straight back, and the attention function receives
them with the query and does append and attention in one. Two listeners answer the calls: `Probe` writes them down and
computes nothing, `Tap` computes, or traces, `attention_ops`.
"""

from __future__ import annotations

import contextvars
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from deltallm_onnx.export import attention_ops
from deltallm_onnx.export.report import LayerReport

#: Name of our attention in transformers' registries.
IMPLEMENTATION = "deltallm_onnx"

KeyValue = tuple[Tensor, Tensor]


@dataclasses.dataclass(frozen=True)
class AttentionCall:
    """What one layer handed to the attention interface.

    Attributes:
        layer: index under which the layer's keys were stored; None if it stored none in this call.
        owns_keys: the keys and values are those just stored, unchanged.
        query: float [B, Hq, S, D].
        key: float [B, Hkv, S, D].
        value: float [B, Hkv, S, Dv].
        mask: what arrived as attention_mask.
        scale: factor of q·k.
        softcap: 0 for none.
        extras: names of further arguments that are not None.
    """

    layer: int | None
    owns_keys: bool
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float
    softcap: float
    extras: tuple[str, ...]


class Listener(Protocol):
    """Who answers the attention calls of the model that runs."""

    cache: TapCache

    def mask(self, **arguments: Any) -> Any:
        """Answer transformers' request for a mask."""

    def attend(self, call: AttentionCall) -> Tensor:
        """Answer one layer: float [B, Hq, S, Dv]."""


_listener: contextvars.ContextVar[Listener] = contextvars.ContextVar("deltallm_onnx_listener")


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Send the attention calls made inside to `listener`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


class TapLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is checked as untyped, see pyproject.toml
    """One layer of `TapCache`: knows how long the past is, stores nothing."""

    is_sliding = False  # every layer keeps its whole past: the mask alone decides what is seen

    def __init__(self, past_length: Any) -> None:
        super().__init__()
        self.past_length = past_length

    def lazy_initialization(self, *_: Any, **__: Any) -> None:
        """Nothing to set up."""
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> KeyValue:
        """Hand the new keys and values straight back."""
        return key_states, value_states

    def get_mask_sizes(self, query_length: Any) -> tuple[Any, int]:
        """Number of keys the mask spans, and the first of them."""
        # transformers 4 hands over the positions, 5 their number
        new = query_length.shape[0] if isinstance(query_length, Tensor) else query_length
        return self.past_length + new, 0

    def get_seq_length(self, *_: Any) -> Any:
        """Past tokens."""
        return self.past_length

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def get_max_cache_shape(self) -> int:
        """No limit; transformers 4 asks under this name."""
        return -1


class TapCache(Cache):  # type: ignore[misc]  # the same
    """A cache whose `update` gives back only the new keys and values, and remembers whose they are."""

    def __init__(self, layers: int, past_length: Any) -> None:
        super().__init__(layers=[TapLayer(past_length) for _ in range(layers)])
        self._pending: tuple[int, Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> KeyValue:
        """Hand the new keys and values straight back, and remember them for `take`."""
        self._pending = (layer_idx, key_states, value_states)
        return key_states, value_states

    def take(self, key: Tensor, value: Tensor) -> tuple[int | None, bool]:
        """The layer of the last update, once, and whether `key` and `value` are what it handed back."""
        if self._pending is None:
            return None, False
        layer, stored_key, stored_value = self._pending
        self._pending = None
        return layer, key is stored_key and value is stored_value


#: Arguments of the interface that carry no attention semantics beyond the mask, or none in inference.
_HARMLESS = frozenset(
    {
        "attention_mask",
        "cache_position",
        "cu_seq_lens_k",
        "cu_seq_lens_q",
        "dropout",
        "is_causal",
        "max_length_k",
        "max_length_q",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_embeddings",
        "position_ids",
        "past_key_values",
        "return_dict",
        "sliding_window",  # the mask carries it
        "token_type_ids",
        "use_cache",
    }
)


def _attention_function(  # noqa: PLR0917 - transformers calls it so
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    del module
    listener = _listener.get()
    layer, owns_keys = listener.cache.take(key, value)
    call = AttentionCall(
        layer=layer,
        owns_keys=owns_keys,
        query=query,
        key=key,
        value=value,
        mask=attention_mask,
        scale=float(query.shape[-1] ** -0.5 if scaling is None else scaling),
        softcap=float(softcap or 0.0),
        extras=tuple(sorted(name for name, x in others.items() if x is not None and name not in _HARMLESS)),
    )
    return listener.attend(call).transpose(1, 2).contiguous(), None


def _mask_function(*_: Any, **arguments: Any) -> Any:
    return _listener.get().mask(**arguments)


def register() -> None:
    """Make `IMPLEMENTATION` known to transformers; doing it again changes nothing."""
    AttentionInterface.register(IMPLEMENTATION, _attention_function)
    AttentionMaskInterface.register(IMPLEMENTATION, _mask_function)


class Probe:
    """Listener that writes the calls down and computes nothing."""

    def __init__(self, layers: int, past_length: int) -> None:
        self.cache = TapCache(layers, past_length)
        self.calls: list[AttentionCall] = []

    def mask(self, **arguments: Any) -> Any:
        """The boolean mask [B, 1, S, T] of transformers itself, never shortened to "causal"."""
        return sdpa_mask(**{**arguments, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})

    def attend(self, call: AttentionCall) -> Tensor:
        """Write the call down; zeros for its output."""
        self.calls.append(call)
        return torch.zeros_like(call.query[..., :1]).expand(*call.query.shape[:3], call.value.shape[3])


class Tap:
    """Listener that answers with `attention_ops`, as the probe found each layer."""

    def __init__(
        self, layers: Sequence[LayerReport], input_ids: Tensor, attention_mask: Tensor, past: Sequence[KeyValue]
    ) -> None:
        self.cache = TapCache(len(layers), past[0][0].shape[2])
        self.present: dict[int, KeyValue] = {}
        self._layers, self._past = layers, past
        self._input_ids, self._attention_mask = input_ids, attention_mask
        self._seen: dict[int, Tensor] = {}

    def mask(self, **arguments: Any) -> Any:
        """A stand-in of the right rank: `attend` uses what the probe found."""
        del arguments
        return self._attention_mask[:, None, None, :].to(torch.bool)

    def attend(self, call: AttentionCall) -> Tensor:
        """Attention and cache append of one layer."""
        if call.layer is None:
            raise RuntimeError("an attention call without a cache update")  # the probe refuses such a model
        layer = self._layers[call.layer]
        if layer.window not in self._seen:
            self._seen[layer.window] = attention_ops.visible(self._input_ids, self._attention_mask, layer.window)
        output, *present = attention_ops.attention(
            call.query,
            call.key,
            call.value,
            self._seen[layer.window],
            *self._past[call.layer],
            layer.scale,
            layer.softcap,
        )
        self.present[call.layer] = (present[0], present[1])
        return output
