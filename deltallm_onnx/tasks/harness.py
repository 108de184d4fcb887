"""EleutherAI's lm-evaluation-harness: found, kept quiet, and kept from running what it was not asked to run."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import version

from deltallm_onnx.errors import DeltaLLMError

#: Set before the harness is imported: no code of metrics from the network, no progress bars between our own lines.
_ENVIRONMENT = {"HF_EVALUATE_OFFLINE": "1", "TQDM_DISABLE": "1"}


def require_harness() -> None:
    """Refuse where lm_eval is not installed.

    Raises:
        DeltaLLMError: naming the extra.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise DeltaLLMError(
            "Tasks are evaluated by EleutherAI's lm-evaluation-harness, which is not installed: "
            "pip install 'deltallm-onnx[tasks]'."
        )


@contextlib.contextmanager
def harness_session() -> Iterator[None]:
    """While tasks are loaded and evaluated: only errors are logged, and templates reach nothing but their items.

    Raises:
        DeltaLLMError: where lm_eval is not installed.
    """
    require_harness()
    with _environment(_ENVIRONMENT), _quiet(), _sandboxed_templates():
        yield


@contextlib.contextmanager
def _sandboxed_templates() -> Iterator[None]:
    """Templates of YAML files come from users too; the harness's own environment lets them reach all of Python."""
    import lm_eval.utils  # noqa: PLC0415  # an extra
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415  # comes with lm_eval

    plain = lm_eval.utils.env
    sandbox = ImmutableSandboxedEnvironment(
        loader=plain.loader, undefined=plain.undefined, keep_trailing_newline=plain.keep_trailing_newline
    )
    sandbox.filters.update(plain.filters)
    lm_eval.utils.env = sandbox
    try:
        yield
    finally:
        lm_eval.utils.env = plain


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Errors reach the user as our own; the rest would stand between lines of the result."""
    import datasets  # noqa: PLC0415  # comes with lm_eval

    datasets.disable_progress_bars()
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, and set them back."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def harness_versions() -> dict[str, str]:
    """Versions that a result depends on."""
    return {name: version(name) for name in ("lm_eval", "datasets")}
