"""Finds, loads and checks the shared library; turns its statuses into exceptions."""

import contextlib
import ctypes
import functools
import os
import pathlib
import sys
import weakref

from . import _c_api

_FILE = {"darwin": "liblowbit.dylib", "win32": "lowbit.dll"}.get(sys.platform, "liblowbit.so")


class Error(RuntimeError):
    """A call of the library failed. The text names the argument and its value.

    status: the number, a `LOWBIT_STATUS_...`.
    name: its name, as "INVALID_ARGUMENT".
    """

    def __init__(self, status, name, text):
        super().__init__(f"{text} ({name})")
        self.status = status
        self.name = name


def library_path():
    """Where the shared library is.

    Raises OSError, naming both places, if it is at neither.
    """
    beside = pathlib.Path(__file__).parent / _FILE
    given = os.environ.get("LOWBIT_LIBRARY")
    path = pathlib.Path(given) if given else beside
    if path.is_file():
        return path
    raise OSError(
        f"the lowbit library was not found: LOWBIT_LIBRARY is {given or 'not set'}"
        f" and {beside} {'is not looked at then' if given else 'does not exist'}"
    )


@functools.cache
def library():
    """The library with its functions declared. It is loaded once and never unloaded, as XLA keeps
    the address of its handler."""
    path = library_path()
    loaded = ctypes.CDLL(str(path))
    # The version comes first: a library of another version may lack the other functions.
    _declare(loaded, path, "lowbit_abi_version")
    major, minor = ctypes.c_uint32(), ctypes.c_uint32()
    loaded.lowbit_abi_version(ctypes.byref(major), ctypes.byref(minor))
    wanted = (_c_api.LOWBIT_ABI_MAJOR, _c_api.LOWBIT_ABI_MINOR)
    if major.value != wanted[0] or minor.value < wanted[1]:
        raise OSError(
            f"{path} has ABI {major.value}.{minor.value}; this package needs {wanted[0]}.x with"
            f" x >= {wanted[1]}. Install the library and the package from one release."
        )
    for name in _c_api.FUNCTIONS:
        _declare(loaded, path, name)
    return loaded


def _declare(loaded, path, name):
    try:
        function = getattr(loaded, name)
    except AttributeError:
        raise OSError(f"{path} has no {name}: it is not the lowbit library") from None
    function.restype, function.argtypes = _c_api.FUNCTIONS[name]


def version():
    """The library's version, as "0.1.0"."""
    return library().lowbit_version().decode()


def call(name, *arguments):
    """Calls a function that returns a status; raises Error if it is not OK."""
    status = getattr(library(), name)(*arguments)
    if status != _c_api.LOWBIT_STATUS_OK:
        # At most 1024 bytes are kept, and it is this thread's text.
        text = ctypes.create_string_buffer(1025)
        library().lowbit_last_error(text, len(text), None)
        status_name = library().lowbit_status_name(status).decode()
        raise Error(status, status_name, text.value.decode())


def text_of(name, handle):
    """The text that a copy-out function gives for a handle."""
    needed = ctypes.c_size_t()
    call(name, handle, None, 0, ctypes.byref(needed))
    text = ctypes.create_string_buffer(needed.value)
    call(name, handle, text, len(text), None)
    return text.value.decode()


@contextlib.contextmanager
def callback(progress):
    """A Python function (or None) as a lowbit_progress_t. What it raises cannot cross C: it ends the
    call, and is raised when the call has returned."""
    raised = []

    def report(_user, done, total):
        try:
            progress(done, total)
        except BaseException as error:
            raised.append(error)
        return bool(raised)

    try:
        yield _c_api.lowbit_progress_t(report) if progress else _c_api.lowbit_progress_t()
    finally:
        if raised:
            raise raised[0] from None


def create(owner, kind, name, *arguments):
    """Calls a constructor; the handle is destroyed when `owner` is collected."""
    handle = ctypes.POINTER(getattr(_c_api, f"lowbit_{kind}_t"))()
    call(name, *arguments, ctypes.byref(handle))
    weakref.finalize(owner, getattr(library(), f"lowbit_{kind}_destroy"), handle)
    return handle
