"""Paths of this machine in what is packaged: a package goes to others, who need not know how our folders are called."""

from __future__ import annotations

import contextlib
import json
import mmap
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import onnx

from deltallm_onnx.errors import DeltaLLMError

_WINDOWS_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


def without_paths(value: Any) -> Any:
    """JSON with every absolute path cut to its last name: Hugging Face's `_name_or_path`, texts of a calibration.

    A path has two folders at least, or is a Windows one; "/" and "/s" are tokens.
    """
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    return _last_name(value) if isinstance(value, str) else value


def _last_name(text: str) -> str:
    if _WINDOWS_DRIVE.match(text) and "\n" not in text:
        return PureWindowsPath(text).name
    names = PurePosixPath(text).parts
    if text.startswith("/") and len(names) > 2 and not any(mark in text for mark in "\n{}<>"):
        return names[-1]
    return text


def write_clean_json(source: Path, target: Path) -> bool:
    """Copy a JSON file without paths of this machine; whether there were any.

    The bytes stay as they are where there were none.

    Raises:
        DeltaLLMError: for a file that is not JSON.
    """
    content = source.read_bytes()
    try:
        data = json.loads(content)
        clean = without_paths(data)
    except (ValueError, RecursionError) as error:
        raise DeltaLLMError(f"{source} cannot be read as JSON ({error}): correct it or remove it.") from error
    changed = bool(clean != data)
    if changed:
        content = (json.dumps(clean, indent=2) + "\n").encode()  # escapes: a text may hold half a surrogate pair
    target.write_bytes(content)
    return changed


def clear_graph(model: onnx.ModelProto, folders: Iterable[str]) -> bool:
    """Remove notes that name folders of this machine, such as torch's stack traces; whether there were any.

    Args:
        model: changed in place: texts for people and entries of metadata, nothing that is computed.
        folders: absolute paths.
    """
    marks = tuple(folders)
    changed = False
    functions = [holder for function in model.functions for holder in (function, *_holders(function.node))]
    for holder in (model, *functions, *_graph_holders(model.graph)):
        if any(mark in holder.doc_string for mark in marks):
            holder.ClearField("doc_string")
            changed = True
        kept = [entry for entry in holder.metadata_props if not any(mark in entry.value for mark in marks)]
        if len(kept) < len(holder.metadata_props):
            del holder.metadata_props[:]
            holder.metadata_props.extend(kept)
            changed = True
    return changed


def _graph_holders(graph: onnx.GraphProto) -> Iterator[Any]:
    """Every message of a graph with texts and metadata, those of its subgraphs too."""
    yield from (graph, *graph.input, *graph.output, *graph.value_info, *graph.initializer)
    yield from _holders(graph.node)


def _holders(nodes: Iterable[onnx.NodeProto]) -> Iterator[Any]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):  # an absent g is an empty graph
                yield from _graph_holders(graph)


def own_folders(*paths: Path) -> tuple[str, ...]:
    """Folders of this machine that nobody else should read of.

    Args:
        paths: further ones, such as the model's.
    """
    folders = {path.resolve() for path in (Path.cwd(), *paths)}
    with contextlib.suppress(RuntimeError):  # a user without an entry in the system's list has no home
        folders.add(Path.home().resolve())
    # One name, such as /root or /tmp, stands in other people's files too.
    return tuple(sorted(str(folder) for folder in folders if len(folder.parts) > 2))


def files_naming(folder: Path, folders: Iterable[str], leave_out: Iterable[Path]) -> list[str]:
    """The files below a folder that hold one of these paths, relative to it.

    Args:
        folder: of the package.
        folders: absolute paths.
        leave_out: files that are not searched, such as weights.
    """
    marks = [mark.encode() for mark in folders]
    left_out = set(leave_out)
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path not in left_out and path.stat().st_size:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if any(content.find(mark) >= 0 for mark in marks):
                    found.append(path.relative_to(folder).as_posix())
    return found
