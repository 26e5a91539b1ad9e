"""llama.cpp through llama-cpp-python, whose low-level functions are those of llama.h."""

import ctypes
import os
from functools import cache
from typing import Any

ERROR = 4  # level of a message

_errors: list[str] = []  # of the library, the newest last
_kept: list[object] = []  # what the library calls


@cache
def binding() -> Any:
    """llama-cpp-python, silenced. ValueError: it is not installed."""
    spinning = os.environ.get("OMP_WAIT_POLICY")
    os.environ["OMP_WAIT_POLICY"] = spinning or "PASSIVE"  # else threads starve on busy cores
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:
        raise ValueError(
            f"engine=llamacpp needs llama-cpp-python: pip install 'ptsearch[llamacpp]' ({error})"
        ) from None
    finally:
        if spinning is None:
            del os.environ["OMP_WAIT_POLICY"]

    def listen(level: int, text: bytes, _: object) -> None:
        if level == ERROR:
            _errors[:] = [*_errors[-9:], text.decode(errors="replace").strip()]

    _kept.append(llama_cpp.llama_log_callback(listen))
    llama_cpp.llama_log_set(_kept[0], ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


def reason() -> str:
    """The library's last error."""
    return _errors[-1] if _errors else "it gives no reason"
