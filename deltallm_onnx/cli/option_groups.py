"""Options that several commands share: the fields of a dataclass, gathered into one parameter of the command."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, get_args, get_type_hints


def takes(group: type[Any], parameter: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let a command take every field of a dataclass as an option.

    Args:
        group: a dataclass whose fields are annotated with typer options.
        parameter: the command's parameter that gets an instance of it.
    """
    fields = dataclasses.fields(group)

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        hints = get_type_hints(group, include_extras=True)
        own_hints = get_type_hints(command, include_extras=True)
        own = [
            given.replace(annotation=own_hints[name])
            for name, given in inspect.signature(command).parameters.items()
            if name != parameter
        ]
        shared = [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
            )
            for field in fields
        ]

        @functools.wraps(command)
        def gathered(**values: Any) -> Any:
            gathered_options = group(**{field.name: values.pop(field.name) for field in fields})
            return command(**values, **{parameter: gathered_options})

        gathered.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]  # PEP 362 allows it
        gathered.__annotations__ = {given.name: given.annotation for given in (*own, *shared)}
        return gathered

    return decorate


def one_of(kind: Any) -> str:
    """How the help writes the choices of a Literal."""
    return " | ".join(get_args(kind))
