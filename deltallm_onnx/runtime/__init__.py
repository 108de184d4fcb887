"""Run models: find and register the operator library, keep the caches, generate."""

from deltallm_onnx.runtime.cache import CacheTensor, KVCache, cache_spec
from deltallm_onnx.runtime.generate import Generation, generate
from deltallm_onnx.runtime.library import ops_library_path, register
from deltallm_onnx.runtime.model import DecoderModel
from deltallm_onnx.runtime.model_file import read_model_file
from deltallm_onnx.runtime.sampling import Sampler
from deltallm_onnx.runtime.side_files import context_length, end_of_sequence_ids
from deltallm_onnx.runtime.tokenizer import TextTokenizer

__all__ = [
    "CacheTensor",
    "DecoderModel",
    "Generation",
    "KVCache",
    "Sampler",
    "TextTokenizer",
    "cache_spec",
    "context_length",
    "end_of_sequence_ids",
    "generate",
    "ops_library_path",
    "read_model_file",
    "register",
]
