"""Measure plans on the parts of the text: through a journal, with as few sessions as the plans allow."""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from deltallm_onnx.attention_plan import AttentionPlan, LayerGeometry
from deltallm_onnx.calibration.journal import Journal
from deltallm_onnx.calibration.measurement import Measurement
from deltallm_onnx.calibration.probe import Probe
from deltallm_onnx.calibration.reference import Reference
from deltallm_onnx.calibration.shadow import ShadowProbe
from deltallm_onnx.calibration.text import TextParts
from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.dense_model import open_dense_model, quiet
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.passes.pipeline import model_geometry
from deltallm_onnx.passes.write_metadata import VERSION
from deltallm_onnx.runtime.model import DecoderModel

Part = Literal["sensitivity", "search", "verification"]
_Kind = TypeVar("_Kind", bound=Probe)

#: Bytes of a model of which two sessions are kept open; of a larger one only one is, as each holds weights in memory.
_SMALL_MODEL = 1 << 30
#: Bytes of logits per call.
_LOGIT_BYTES = 128 << 20


class Meter(Protocol):
    """What the search needs of a model: the numbers of a plan on a part of the text."""

    @property
    def geometry(self) -> tuple[LayerGeometry, ...]:
        """The layers, in ascending order of their numbers."""

    def dense(self, part: Part) -> Measurement:
        """The dense model's own numbers."""

    def measure(
        self, part: Part, config: DeltaConfig, plan: AttentionPlan, *, windows: int | None = None
    ) -> Measurement:
        """A plan's numbers.

        Args:
            part: of the text.
            config: window, sinks, refresh and cache format.
            plan: thresholds of all layers.
            windows: read only the first so many of the part.
        """

    def errors(self, config: DeltaConfig, plan: AttentionPlan, *, windows: int) -> Measurement:
        """What a plan changes in each head's attention output, while all other layers are dense.

        Args:
            config: as in `measure`.
            plan: thresholds of all layers.
            windows: read only the first so many of the sensitivity part.
        """


class ModelMeter:
    """Measures a dense .onnx file.

    Args:
        dense: the file.
        model_sha256: of the file and its weights, in hex.
        parts: the text.
        journal: measurements made before are taken from it, and new ones added.
        folder: for temporary files.
        threads: intra-op threads; None leaves the choice to ONNX Runtime.
        on_read: called with the number of windows after each reading.

    Attributes:
        geometry: the layers, in ascending order of their numbers.

    Raises:
        DeltaLLMError: where the model cannot be run or rewritten.
    """

    def __init__(
        self,
        dense: Path,
        model_sha256: str,
        parts: TextParts,
        journal: Journal,
        *,
        folder: Path,
        threads: int | None = None,
        on_read: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._path, self._threads, self._journal, self._on_read = dense, threads, journal, on_read
        self._references = {
            part: Reference(windows, folder)
            for part, windows in (
                ("sensitivity", parts.sensitivity),
                ("search", parts.search),
                ("verification", parts.verification),
            )
        }
        self._identity = hashlib.sha256(model_sha256.encode()).hexdigest()
        self._probes: OrderedDict[str, Probe] = OrderedDict()
        with quiet():
            opened = open_dense_model(dense)
            if VERSION in opened.model.metadata_props:
                raise DeltaLLMError(f"{dense} is already rewritten: calibrate the dense model it was made from.")
            self.geometry: tuple[LayerGeometry, ...] = model_geometry(opened.model)
        files = [dense, *opened.data_files]
        self._sessions = 2 if sum(file.stat().st_size for file in files) < _SMALL_MODEL else 1

    def open(self, on_first: Callable[[float], None] = lambda _: None) -> None:
        """Read all windows with the dense model.

        Args:
            on_first: called after the first window, with the seconds that it took.

        Raises:
            DeltaLLMError: where that fails.
        """
        model = DecoderModel(self._path, threads=self._threads)
        began: float | None = time.perf_counter()

        def read() -> None:
            nonlocal began
            if began is not None:
                on_first(time.perf_counter() - began)
                began = None
            self._on_read(1)

        for reference in self._references.values():
            reference.fill(model, read)

    def dense(self, part: Part) -> Measurement:
        """The dense model's own numbers."""
        return self._references[part].dense(self.geometry)

    def measure(
        self, part: Part, config: DeltaConfig, plan: AttentionPlan, *, windows: int | None = None
    ) -> Measurement:
        """As in `Meter`."""
        reference = self._references[part]
        count = len(reference.windows) if windows is None else min(windows, len(reference.windows))
        return self._recorded(self._read, reference, count, config, plan)

    def errors(self, config: DeltaConfig, plan: AttentionPlan, *, windows: int) -> Measurement:
        """As in `Meter`."""
        reference = self._references["sensitivity"]
        count = min(windows, len(reference.windows))
        return self._recorded(self._read_errors, reference, count, config, plan)

    def close(self) -> None:
        """Free the sessions."""
        for probe in self._probes.values():
            probe.close()
        self._probes.clear()

    def _recorded(
        self,
        read: Callable[[Reference, int, DeltaConfig, AttentionPlan], Measurement],
        reference: Reference,
        count: int,
        config: DeltaConfig,
        plan: AttentionPlan,
    ) -> Measurement:
        """From the journal, or measured and added to it."""
        key = self._key(read.__name__, reference, count, config, plan)
        known = self._journal.find(key)
        if known is None:
            known = read(reference, count, config, plan)
            self._journal.add(key, known)
        self._on_read(count)
        return known

    def _read(self, reference: Reference, count: int, config: DeltaConfig, plan: AttentionPlan) -> Measurement:
        probe = self._probe(config, plan, Probe)
        divergence, loss = np.zeros(count), np.zeros(count)
        totals: list[Any] = []
        seconds, first, size = 0.0, 0, 1
        while first < count:
            began = time.perf_counter()
            logits, statistics = probe.run(reference.windows[first : min(first + size, count)], plan)
            seconds += time.perf_counter() - began
            totals = [a + b for a, b in zip(totals, statistics, strict=True)] if totals else list(statistics)
            for number, row in enumerate(logits, first):
                divergence[number], loss[number] = reference.score(number, row)
            first += len(logits)
            size = max(1, _LOGIT_BYTES // logits[0].nbytes)
        return Measurement(divergence, loss, tuple(totals), reference.windows.shape[1], seconds)

    def _read_errors(self, reference: Reference, count: int, config: DeltaConfig, plan: AttentionPlan) -> Measurement:
        probe = self._probe(config, plan, ShadowProbe)
        began, tokens = time.perf_counter(), reference.windows.shape[1]
        readings = [probe.errors(window[None], plan) for window in reference.windows[:count]]
        errors = tuple(sum(layer) for layer in zip(*(found for found, _ in readings), strict=True))
        statistics = tuple(sum(layer) for layer in zip(*(counts for _, counts in readings), strict=True))
        seconds = time.perf_counter() - began
        return Measurement(np.zeros(count), reference.loss(count), statistics, tokens, seconds, errors)

    def _probe(self, config: DeltaConfig, plan: AttentionPlan, kind: type[_Kind]) -> _Kind:
        """A session for plans of this kind; the one used longest ago makes room."""
        settings: dict[str, Any] = {
            "granularity": [layer.granularity for layer in plan.layers],
            "row_rule": [layer.row_rule for layer in plan.layers],
            "v_skip": [layer.v_skip for layer in plan.layers],
            # Weights of one compute the same as no weights, and one session then serves both.
            "weighted": True,
        }
        key = json.dumps([kind.__name__, _global(config), settings])
        known = self._probes.get(key)
        if isinstance(known, kind):
            self._probes.move_to_end(key)
            return known
        while len(self._probes) >= self._sessions:
            self._probes.popitem(last=False)[1].close()
        probe = kind(self._path, config, threads=self._threads, **settings)
        self._probes[key] = probe
        return probe

    def _key(self, what: str, reference: Reference, count: int, config: DeltaConfig, plan: AttentionPlan) -> str:
        """Of everything that the numbers depend on; `what` says which numbers."""
        digest = hashlib.sha256(f"{what} {self._identity}".encode())
        digest.update(np.ascontiguousarray(reference.windows[:count], "<i8").tobytes())
        digest.update(repr(reference.windows[:count].shape).encode())
        digest.update(json.dumps(_global(config)).encode())
        digest.update(plan.sha256.encode())
        return digest.hexdigest()


def _global(config: DeltaConfig) -> dict[str, Any]:
    """The settings that a plan does not say for each layer, as far as they change what is measured."""
    return {name: getattr(config, name) for name in ("window", "sinks", "refresh", "cache_format")}


def files_sha256(paths: Iterable[Path]) -> str:
    """Of the contents of files, in the order given, in hex."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()
