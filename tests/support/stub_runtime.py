"""An ONNX Runtime that only says its version and which API it offers, given to the operator library.

A program of its own, because the library keeps what it agreed on: arguments LIBRARY VERSION NEWEST_API; prints what
the library answers to the registration, and which versions of the API it asked for.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

#: Functions of OrtApi; CreateStatus is the first.
_FUNCTIONS = 400

_CreateStatus = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
_GetApi = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
# A char pointer that a callback returns must not be a Python string's.
_GetVersionString = ctypes.CFUNCTYPE(ctypes.c_void_p)


class _ApiBase(ctypes.Structure):
    _fields_ = (("GetApi", _GetApi), ("GetVersionString", _GetVersionString))


def registration(library: Path, version: str, newest_api: int) -> tuple[str, list[int]]:
    """The text of the status that RegisterCustomOps returns, "" for none, and the versions of the API it asked for."""
    text, asked, messages = ctypes.create_string_buffer(version.encode()), [], []
    api = (ctypes.c_void_p * _FUNCTIONS)()

    def create_status(code: int, message: bytes) -> int:
        del code
        messages.append(message.decode())
        return ctypes.addressof(text)  # anything but null

    def get_api(wanted: int) -> int | None:
        asked.append(wanted)
        return ctypes.addressof(api) if wanted <= newest_api else None

    create, get = _CreateStatus(create_status), _GetApi(get_api)
    say = _GetVersionString(lambda: ctypes.addressof(text))
    api[0] = ctypes.cast(create, ctypes.c_void_p)
    base = _ApiBase(get, say)
    register = ctypes.CDLL(str(library)).RegisterCustomOps
    register.restype = ctypes.c_void_p
    status = register(None, ctypes.byref(base))
    assert bool(status) == bool(messages)
    return "".join(messages), asked


if __name__ == "__main__":
    print(json.dumps(registration(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
