"""The C++ library of csrc/, loaded with ctypes. Calls into it release the GIL.

It exports plain C functions: pointers, sizes and strides. `library()` returns the loaded
`ctypes.CDLL`, or None where it cannot be used: `obstacle()` says why. In a checkout, where csrc/
lies beside the package, a library that was built from other sources is not used.
"""

import ctypes
import functools
import glob
import hashlib
import logging
import multiprocessing
import os
import platform
import re
from pathlib import Path

log = logging.getLogger(__name__)
REMEDY = "run `pip install -e .` again"


def source_hash(folder: Path) -> str:
    """Of the C++ sources below `folder`, their names and contents; setup.py builds it in."""
    found = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".cpp", ".h")):
        content = path.read_bytes()
        found.update(f"{path.relative_to(folder).as_posix()} {len(content)}\n".encode())
        found.update(content)
    return found.hexdigest()[:16]


@functools.cache
def openmp() -> ctypes.CDLL | None:
    """Torch's own OpenMP runtime, made visible to the library, so that both share one thread pool;
    None where none is found."""
    import torch

    beside_torch = glob.glob(os.path.join(os.path.dirname(torch.__file__), "lib", "lib*omp*.so*"))
    for name in [*beside_torch, "libgomp.so.1", "libomp.so"]:
        try:
            return ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
    return None


def _file() -> str | None:
    found = glob.glob(os.path.join(os.path.dirname(__file__), "_native*.so"))
    return found[0] if found else None


def _stale(library: ctypes.CDLL) -> bool:
    """Whether csrc/ beside the package is not what the library was built from."""
    sources = Path(__file__).resolve().parent.parent / "csrc"
    if not (sources / "sources.cpp").exists():
        return False  # installed from a wheel: nothing to compare with
    try:
        built_from = library.eva_sources
    except AttributeError:
        return True
    built_from.restype = ctypes.c_char_p
    return built_from().decode() != source_hash(sources)


@functools.cache
def _loaded() -> tuple[ctypes.CDLL | None, str | None]:
    """(library, None) or (None, why not)."""
    file = _file()
    if file is None:
        return None, "is not built: with a C++ compiler (apt install g++) install again"
    openmp()
    try:
        library = ctypes.CDLL(file)
    except OSError as error:
        return None, f"cannot be loaded ({error}): {REMEDY}"
    if _stale(library):
        reason = f"is stale, csrc/ has changed since it was built: {REMEDY}"
        if multiprocessing.parent_process() is None:  # once, not in every worker
            log.warning("the C++ library is not used: it %s", reason)
        return None, reason
    return library, None


def library() -> ctypes.CDLL | None:
    """The native library, loaded once a process; None where it cannot be used."""
    return _loaded()[0]


def obstacle() -> str | None:
    """Why the C++ kernels cannot run; the words go on from "it". None where they can."""
    return _loaded()[1]


@functools.cache
def build() -> str | None:
    """Names the build of the library: the start of its file's hash; None where there is none."""
    file = _file()
    return file and hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12]


def available() -> bool:
    """Whether the C++ kernels can run."""
    return obstacle() is None


@functools.cache
def cpu_name() -> str:
    """The processor's name, as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.M)):
        return found[1].strip()
    return platform.processor() or platform.machine()
