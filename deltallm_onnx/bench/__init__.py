"""Measure models and operators against each other: interleaved rounds, ratios with their spread, memory."""

from deltallm_onnx.bench.peak_memory import peak_resident_bytes, resident_bytes, run_child
from deltallm_onnx.bench.record import write_record
from deltallm_onnx.bench.rounds import Spread, clock, fastest, interleave, quotients
from deltallm_onnx.bench.two_models import Measurement, Plan, bench_models, usual_pasts

__all__ = [
    "Measurement",
    "Plan",
    "Spread",
    "bench_models",
    "clock",
    "fastest",
    "interleave",
    "peak_resident_bytes",
    "quotients",
    "resident_bytes",
    "run_child",
    "usual_pasts",
    "write_record",
]
