"""torch's products, called from Numba's loops without Python.

torch exports C functions for models that it has compiled (AOTInductor's shim, `shim_cpu.h`). They
take handles, which are addresses of tensor objects, and return 0 where all went well.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from ptsearch.engine.kernels import Codes, Places

FUNCTIONS = (
    "aoti_torch_cpu__linear_pointwise",
    "aoti_torch_cpu__linear_pointwise_binary",
    "aoti_torch_cpu_bmm_out",
    "aoti_torch_get_data_ptr",
    "aoti_torch_delete_tensor_object",
)
LINEAR, TIMES, BMM, DATA, DELETE = range(len(FUNCTIONS))
INTEGER = ir.IntType(64)


@cache
def functions() -> Places:
    """Their addresses; empty where this torch has not all of them."""
    libraries = Path(torch.__file__).parent / "lib"
    try:
        library = ctypes.CDLL(str(next(libraries.glob("libtorch_cpu.*"))))
        found = [getattr(library, name) for name in FUNCTIONS]
        torch._C._aoti.unsafe_alloc_void_ptr_from_tensor  # noqa: B018
    except (AttributeError, OSError, StopIteration):
        return np.empty(0, np.int64)
    return np.array([ctypes.cast(each, ctypes.c_void_p).value for each in found])


@cache
def name(text: str) -> int:
    """The address of a C string, which stays for good."""
    _NAMES[text] = ctypes.create_string_buffer(text.encode())
    return ctypes.addressof(_NAMES[text])


_NAMES: dict[str, Any] = {}


class Handles(list[int]):
    """Handles that end together."""

    def of(self, tensor: Tensor | None) -> int:
        """A new one, 0 for no tensor. What is in the tensor is not copied."""
        if tensor is None:
            return 0
        capsule = torch._C._aoti.unsafe_alloc_void_ptr_from_tensor(tensor)
        self.append(_pointer(capsule, _name(capsule)))
        return self[-1]

    def delete(self) -> None:
        delete_all(functions(), np.array(self, dtype=np.int64))
        self.clear()


@contextmanager
def handles() -> Iterator[Handles]:
    made = Handles()
    try:
        yield made
    finally:
        made.delete()


_pointer, _name = ctypes.pythonapi.PyCapsule_GetPointer, ctypes.pythonapi.PyCapsule_GetName
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_name.restype, _name.argtypes = ctypes.c_char_p, [ctypes.py_object]


@intrinsic
def _call(_context: Any, _address: Any, arguments: Any) -> Any:
    """The C function at an address, of integers and pointers; what it returns."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        given = cgutils.unpack_tuple(builder, values[1])  # type: ignore[no-untyped-call]
        kinds = signature.args[1]
        integers = [
            context.cast(builder, value, kind, types.int64)
            for value, kind in zip(given, kinds, strict=True)
        ]
        kind = ir.FunctionType(ir.IntType(32), [INTEGER] * len(integers))
        return builder.call(builder.inttoptr(values[0], kind.as_pointer()), integers)

    return types.int32(types.int64, arguments), code


@intrinsic
def _codes_at(_context: Any, _address: Any) -> Any:
    def code(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], ir.IntType(16).as_pointer())

    return types.CPointer(types.uint16)(types.int64), code  # type: ignore[no-untyped-call]


@numba.njit(nogil=True, cache=True)
def codes_at(address: int, rows: int, width: int) -> Codes:
    """The numbers at an address: (rows, width)."""
    numbers: Codes = numba.carray(_codes_at(address), (rows, width))  # type: ignore
    return numbers


@numba.njit(nogil=True, cache=True)
def linear(f: Places, x: int, weight: int, bias: int, activation: int) -> int:
    """A new handle of activation(x Wᵀ + b); 0 = it failed. `bias`: a handle or 0."""
    if not x:
        return 0
    box = np.array([bias, 0])
    at = box.ctypes.data
    failed: int = _call(f[LINEAR], (x, weight, at if bias else 0, activation, 0, 0, 0, at + 8))  # type: ignore[call-arg]
    return 0 if failed else box[1]


@numba.njit(nogil=True, cache=True)
def linear_times(f: Places, x: int, times: int, weight: int, bias: int, mul: int) -> int:
    """A new handle of (x Wᵀ + b) times; 0 = it failed. `mul`: that name."""
    if not times:
        return 0
    box = np.array([bias, 0])
    at = box.ctypes.data
    failed: int = _call(f[TIMES], (x, times, weight, at if bias else 0, mul, at + 8))  # type: ignore[call-arg]
    return 0 if failed else box[1]


@numba.njit(nogil=True, cache=True)
def bmm(f: Places, x: int, y: int, out: int) -> bool:
    """out = x y, batch by batch; False = it failed."""
    done: bool = _call(f[BMM], (out, x, y)) == 0  # type: ignore[call-arg]
    return done


@numba.njit(nogil=True, cache=True)
def data(f: Places, tensor: int) -> int:
    """The address of a tensor's numbers."""
    box = np.zeros(1, np.int64)
    _call(f[DATA], (tensor, box.ctypes.data))  # type: ignore[call-arg]
    return box[0]


@numba.njit(nogil=True, cache=True)
def delete_all(f: Places, handles: Places) -> None:
    for handle in handles:
        if handle:
            _call(f[DELETE], (handle,))  # type: ignore[call-arg]
