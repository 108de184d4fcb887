"""Open a dense or rewritten decoder with stock ONNX Runtime and run it token by token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.runtime.cache import KVCache
from deltallm_onnx.runtime.library import register
from deltallm_onnx.runtime.model_file import ORT_SUFFIX, read_model_file
from deltallm_onnx.runtime.ort_file import kernels_needed, read_graph
from deltallm_onnx.runtime.session_options import reason, session_options
from deltallm_onnx.runtime.session_settings import SessionSettings
from deltallm_onnx.runtime.signature import DecoderSignature, read_signature


class DecoderModel:
    """A causal language model with a key/value cache in an ONNX Runtime session.

    Safe for concurrent `step` calls, as long as each has its own cache.

    Args:
        path: the .onnx or .ort file.
        use_library: run `ai.deltallm` operators with the compiled library. False runs their function bodies: slow, and
            only possible where the model carries them. An .ort has one of the two frozen in.
        threads: intra-op threads; None leaves the choice to ONNX Runtime.
        edit: changes the graph of an .onnx in memory before it is opened; the file and its external weights stay as
            they are.
        settings: what the session trades memory for; ONNX Runtime's defaults if None.

    Raises:
        DeltaLLMError: for a file that is no such model, for a missing library, and where ONNX Runtime refuses it.
    """

    def __init__(
        self,
        path: Path,
        *,
        use_library: bool = True,
        threads: int | None = None,
        edit: Callable[[onnx.ModelProto], None] | None = None,
        settings: SessionSettings | None = None,
    ) -> None:
        options = session_options(threads=threads, weights_beside=None if edit is None else path)
        proto = read_graph(path) if edit is None else read_model_file(path)
        if edit is not None:
            edit(proto)
        self.path = path
        self.signature: DecoderSignature = read_signature(proto, str(path), use_library=use_library)
        self.metadata = {entry.key: entry.value for entry in proto.metadata_props}
        if not use_library and self.signature.without_function:
            if path.suffix == ORT_SUFFIX:
                raise kernels_needed(path)
            raise DeltaLLMError(
                f"{path} has no function body for {', '.join(self.signature.without_function)}: "
                "run it with the operator library."
            )
        source = str(path) if edit is None else proto.SerializeToString()
        del proto  # it may hold all weights, and ONNX Runtime is about to read them again
        if settings is not None:
            settings.apply(options)
        self.uses_library = use_library and self.signature.delta_nodes > 0
        if self.uses_library:
            _register(options, path)
        try:
            self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise DeltaLLMError(f"ONNX Runtime {ort.__version__} refuses {path}: {reason(error)}") from error

    def new_cache(self, *, batch: int = 1, limit: int | None = None) -> KVCache:
        """An empty cache for `batch` sequences that will never exceed `limit` tokens."""
        return KVCache(self.signature.caches, batch=batch, limit=limit)

    def step(
        self, token_ids: npt.NDArray[np.integer[Any]], cache: KVCache
    ) -> tuple[npt.NDArray[np.float32], list[npt.NDArray[np.int64]]]:
        """Run new tokens behind those in the cache, and append them to it.

        Args:
            token_ids: [B, S], S ≥ 1, no padding.
            cache: from `new_cache`, for the same B.

        Returns:
            Logits float32 [B, S, V], and the statistics int64 [Hkv, 8] of every layer (docs/spec.md section 6; empty
            for a model without them).

        Raises:
            DeltaLLMError: where ONNX Runtime cannot run the call.
        """
        batch, new_tokens = token_ids.shape
        total = cache.length + new_tokens
        binding = self._session.io_binding()
        supplied = {
            "input_ids": token_ids,
            "attention_mask": np.ones((batch, total), np.int64),
            "position_ids": np.broadcast_to(np.arange(cache.length, total), (batch, new_tokens)),
        }
        for name, dtype in self.signature.input_types.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(supplied[name], dtype))
        names = ["logits", *self.signature.statistics]
        for name in names:
            binding.bind_output(name, "cpu")
        names += cache.bind(binding, new_tokens)  # get_outputs() keeps the order of binding
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise DeltaLLMError(f"ONNX Runtime stopped in {self.path} at token {total}: {reason(error)}") from error
        outputs = dict(zip(names, binding.get_outputs(), strict=True))
        cache.advance(new_tokens, outputs)
        logits = outputs["logits"].numpy().astype(np.float32, copy=False)
        return logits, [outputs[name].numpy() for name in self.signature.statistics]


def _register(options: ort.SessionOptions, path: Path) -> None:
    """Register the operator library; where that fails, say of an .ort that it cannot do without."""
    try:
        register(options)
    except DeltaLLMError as error:
        if path.suffix == ORT_SUFFIX:
            raise kernels_needed(path, str(error)) from error
        raise
