"""The C++ library of csrc/, loaded with ctypes. Calls into it release the GIL.

It exports plain C functions: pointers, sizes and strides. `library()` returns the loaded
`ctypes.CDLL` or None where it was not built (no C++ compiler at install time).
"""

import ctypes
import functools
import glob
import hashlib
import os
import platform
import re
from pathlib import Path


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


def _file() -> str | None:
    found = glob.glob(os.path.join(os.path.dirname(__file__), "_native*.so"))
    return found[0] if found else None


@functools.cache
def library() -> ctypes.CDLL | None:
    """The native library, loaded once a process; None where it is not built or cannot be loaded."""
    file = _file()
    if file is None:
        return None
    _load_openmp()
    try:
        return ctypes.CDLL(file)
    except OSError:
        return None


@functools.cache
def build() -> str | None:
    """Names the build of the library: the start of its file's hash; None where there is none."""
    file = _file()
    return file and hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12]


def available() -> bool:
    """Whether the C++ kernels can run."""
    return library() is not None


@functools.cache
def cpu_name() -> str:
    """The processor's name, as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.M)):
        return found[1].strip()
    return platform.processor() or platform.machine()
