"""Find out what each attention layer of a model computes, and refuse what the dense graph cannot say.

The model runs once on a few tokens and a long past, with `attention_tap.Probe` in place of its attention. What arrives
there is compared element by element with causality, one sliding window and padding: what a layer sees is proved, not
read from a config.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.export import attention_ops, attention_tap
from deltallm_onnx.export.attention_tap import AttentionCall, Probe, listening
from deltallm_onnx.export.quiet import first_line, quiet
from deltallm_onnx.export.report import LayerReport
from deltallm_onnx.export.tracing import DenseGraph

_B, _S, _PADDING = 2, 3, 2  # batch row 1 starts with _PADDING padded tokens
_LONGEST_PAST = 2**20  # tokens; the mask of the probe takes 6 bytes per token
_BEYOND = 7  # past tokens beyond the longest window a config names, so that every window shows


def probe(model: Any) -> tuple[LayerReport, ...]:
    """One entry per layer, in order.

    Args:
        model: a causal LM in eval mode with attention implementation `attention_tap.IMPLEMENTATION`.

    Raises:
        DeltaLLMError: for a model whose attention is not one call of the interface per layer over its own keys and
            values with a causal mask and at most one sliding window; the sentence names the model type.
    """
    config = model.config.get_text_config(decoder=True)
    kind, count = config.model_type, int(config.num_hidden_layers)
    past_length = _past_length(config)
    listener = Probe(count, past_length)
    attention_mask = torch.ones(_B, past_length + _S, dtype=torch.int64)
    attention_mask[1, :_PADDING] = 0
    # Small positions: a learned position table may be shorter than the probe's past, and only the mask matters here.
    positions = torch.arange(_S).repeat(_B, 1)
    failure: Exception | None = None
    with quiet(), torch.no_grad(), listening(listener):
        try:
            model(
                input_ids=torch.zeros(_B, _S, dtype=torch.int64),
                attention_mask=attention_mask,
                position_ids=positions,
                past_key_values=listener.cache,
                use_cache=True,
            )
        except Exception as error:  # noqa: BLE001 - any model code runs here; the user gets one sentence
            failure = error
    calls = listener.calls
    for call in calls:
        _refuse_extras(kind, call)
    if failure is not None and calls:
        raise DeltaLLMError(
            f"A model of type {kind!r} does not run with a plain key/value cache and transformers' attention "
            f"interface ({first_line(failure)}), so its attention cannot be exported."
        ) from failure
    if len(calls) != count:
        raise DeltaLLMError(
            f"A model of type {kind!r} does not use transformers' attention interface once per layer ({len(calls)} "
            f"times in {count} layers), so its attention cannot be exported."
        ) from failure
    _refuse_foreign_keys(kind, calls)
    return tuple(_layer(kind, call, attention_mask) for call in calls)


def _past_length(config: Any) -> int:
    """Long enough for every window the config names; a window behind it can never matter to the model."""
    lengths = [int(getattr(config, "max_position_embeddings", 0) or 0)]
    for name, value in config.to_dict().items():
        if isinstance(value, int) and ("window" in name or "chunk" in name):
            lengths.append(value)
    return min(max(lengths) + _BEYOND, _LONGEST_PAST)


def _refuse_extras(kind: str, call: AttentionCall) -> None:
    if "s_aux" in call.extras:
        raise DeltaLLMError(
            f"A model of type {kind!r} has learned attention sinks, which the standard Attention operator lacks; "
            "it cannot be exported."
        )
    if call.extras:
        raise DeltaLLMError(
            f"A model of type {kind!r} hands {', '.join(call.extras)} to its attention, whose meaning the standard "
            "Attention operator lacks; it cannot be exported."
        )


def _refuse_foreign_keys(kind: str, calls: Sequence[AttentionCall]) -> None:
    shared = [number for number, call in enumerate(calls) if call.layer is None]
    if shared:
        raise DeltaLLMError(
            f"A model of type {kind!r} lets layer {shared[0]} attend to keys and values of another layer; every layer "
            "must have its own to be exported."
        )
    if [call.layer for call in calls] != list(range(len(calls))):
        raise DeltaLLMError(
            f"A model of type {kind!r} stores keys and values in the order {[call.layer for call in calls]}; "
            "one entry per layer, in order, is needed for export."
        )
    for number, call in enumerate(calls):
        if not call.owns_keys:
            raise DeltaLLMError(
                f"A model of type {kind!r} changes keys or values between cache and attention (layer {number}); "
                "it cannot be exported."
            )
        if call.key.shape[3] != call.value.shape[3] or call.query.shape[3] != call.key.shape[3]:
            raise DeltaLLMError(
                f"A model of type {kind!r} has keys of size {call.key.shape[3]} and values of size "
                f"{call.value.shape[3]} in layer {number}; equal sizes are needed for export."
            )


def _layer(kind: str, call: AttentionCall, attention_mask: Tensor) -> LayerReport:
    return LayerReport(
        num_heads=call.query.shape[1],
        kv_num_heads=call.key.shape[1],
        head_size=call.query.shape[3],
        scale=call.scale,
        softcap=call.softcap,
        window=_window(kind, call, attention_mask),
    )


def _window(kind: str, call: AttentionCall, attention_mask: Tensor) -> int:
    """The window whose mask is, element by element, the one that arrived."""
    seen, T = call.mask, attention_mask.shape[1]
    shape = (_B, 1, _S, T)
    if seen is None or seen.dtype is not torch.bool or not _broadcasts(seen, shape):
        form = "none" if seen is None else f"{str(seen.dtype).removeprefix('torch.')} {list(seen.shape)}"
        raise DeltaLLMError(
            f"A model of type {kind!r} gives layer {call.layer} an attention mask of another form ({form}) than "
            f"boolean {list(shape)}; it cannot be exported."
        )
    seen = seen.expand(shape)
    if bool(seen[0, 0, 0, T - _S + 1 :].any()):
        raise DeltaLLMError(
            f"A model of type {kind!r} is not a causal language model as configured: layer {call.layer} sees later "
            "tokens."
        )
    visible = int(seen[0, 0, -1].sum())  # row 0 has no padding
    window = attention_ops.NO_WINDOW if visible == T else visible
    expected = attention_ops.visible(torch.zeros(_B, _S, dtype=torch.int64), attention_mask, window)
    if not torch.equal(seen, expected):
        raise DeltaLLMError(
            f"A model of type {kind!r} gives layer {call.layer} an attention pattern that is neither the whole past "
            "nor one sliding window; it cannot be exported."
        )
    return window


def _broadcasts(seen: Tensor, shape: tuple[int, ...]) -> bool:
    return seen.ndim == len(shape) and all(have in (1, want) for have, want in zip(seen.shape, shape, strict=True))


def check_against_eager(model: Any, layers: Sequence[LayerReport]) -> None:
    """Compare the model that will be traced with transformers' eager attention on a padded prompt and two more tokens.

    Args:
        model: as for `probe`; its attention implementation is switched and switched back.
        layers: what `probe` found.

    Raises:
        DeltaLLMError: if the logits of any real token differ by more than rounding.
    """
    kind, vocabulary = model.config.model_type, model.get_input_embeddings().num_embeddings
    prompt, more, padding = 7, 2, 3
    ids = torch.arange(2 * (prompt + more)).reshape(2, -1) * 7 % vocabulary
    mask = torch.ones_like(ids)
    mask[1, :padding] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    steps = (slice(0, prompt), slice(prompt, prompt + more))
    dense = DenseGraph(model, layers)
    past = [(torch.zeros(2, x.kv_num_heads, 0, x.head_size),) * 2 for x in layers]
    ours, theirs = [], []
    with quiet(), torch.no_grad():
        for step in steps:
            logits, past = dense(ids[:, step], mask[:, : step.stop], positions[:, step], past)
            ours.append(logits)
        model.set_attn_implementation("eager")
        try:
            cache = DynamicCache()
            for step in steps:
                result = model(
                    input_ids=ids[:, step],
                    attention_mask=mask[:, : step.stop],
                    position_ids=positions[:, step],
                    past_key_values=cache,
                    use_cache=True,
                )
                theirs.append(result.logits)
        finally:
            model.set_attn_implementation(attention_tap.IMPLEMENTATION)
    real = mask.bool()
    a, b = torch.cat(ours, 1)[real], torch.cat(theirs, 1)[real]
    error, size = float((a - b).abs().max()), float(b.abs().max())
    if not error <= 1e-3 * max(size, 1e-6):
        raise DeltaLLMError(
            f"A model of type {kind!r} does something in its attention that the export does not see: its logits differ "
            f"by {error:.3g} of {size:.3g} from transformers' eager attention, so it cannot be exported."
        )
