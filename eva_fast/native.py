"""The C++ library of csrc/, loaded with ctypes. Calls into it release the GIL.

It exports plain C functions: pointers, sizes and strides. `library()` returns the loaded
`ctypes.CDLL` or None where it was not built (no C++ compiler at install time).
"""

import ctypes
import functools
import glob
import os


def _load_openmp() -> None:
    """Makes torch's own OpenMP runtime visible to the library, so that both share one thread pool."""
    import torch

    beside_torch = glob.glob(os.path.join(os.path.dirname(torch.__file__), "lib", "lib*omp*.so*"))
    for name in [*beside_torch, "libgomp.so.1", "libomp.so"]:
        try:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
            return
        except OSError:
            continue


@functools.cache
def library() -> ctypes.CDLL | None:
    """The native library, loaded once a process; None where it is not built or cannot be loaded."""
    found = glob.glob(os.path.join(os.path.dirname(__file__), "_native*.so"))
    if not found:
        return None
    _load_openmp()
    try:
        return ctypes.CDLL(found[0])
    except OSError:
        return None


def available() -> bool:
    """Whether the C++ kernels can run."""
    return library() is not None
