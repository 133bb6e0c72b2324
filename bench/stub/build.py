"""Compiles the stub, and the environment in which a process runs on it."""

import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

SOURCES = ("runtime.c", "libraries.c")
HERE = Path(__file__).parent


def obstacle() -> str | None:
    """Why the stub cannot be built here; None where it can."""
    if not (torch.version.cuda or "").startswith("13."):
        return f"the stub stands for CUDA 13, and this torch is built for {torch.version.cuda}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if _headers() is None:
        return "the headers of the CUDA runtime (nvidia-cuda-runtime) are not installed"
    if shutil.which("gcc") is None:
        return "there is no gcc"
    if torch.cuda.is_available() and not is_loaded():
        return "this machine has a real device"
    return None


def is_loaded() -> bool:
    """Whether this process runs on the stub."""
    return os.environ.get("EVA_FAST_STUB") is not None


@functools.cache
def _headers() -> tuple[Path, Path] | None:
    site = Path(torch.__file__).parents[1]
    triton = importlib.util.find_spec("triton")
    assert triton is not None and triton.origin is not None
    runtime = site / "nvidia" / "cu13" / "include"
    compiler = Path(triton.origin).parent / "backends" / "nvidia" / "include"
    return (runtime, compiler) if (runtime / "cuda_runtime_api.h").is_file() else None


@functools.cache
def build() -> Path:
    """The compiled library; kept in the temporary folder under a name made of its sources."""
    text = b"".join((HERE / name).read_bytes() for name in (*SOURCES, "stub.h"))
    digest = hashlib.sha256(text + torch.__version__.encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"eva_fast-stub-{os.getuid()}-{digest}"
    library = folder / "libcuda.so.1"
    if not library.exists():
        folder.mkdir(exist_ok=True)
        draft = folder / f"draft-{os.getpid()}"
        includes = [f"-I{path}" for path in _headers() or ()]
        command = ["gcc", "-shared", "-fPIC", "-O2", "-w", "-Wl,-soname,libcuda.so.1", *includes]
        command += ["-o", str(draft), *(str(HERE / name) for name in SOURCES), "-ldl"]
        subprocess.run(command, check=True)
        draft.rename(library)
    return library


def environment() -> dict[str, str]:
    """The environment of a process that runs on the stub; caches of its own, for what is measured
    there means nothing elsewhere."""
    library = build()
    added = {
        "LD_PRELOAD": str(library),
        "TRITON_LIBCUDA_PATH": str(library.parent),
        "XDG_CACHE_HOME": str(library.parent / "cache"),
        "EVA_FAST_STUB": str(library),
    }
    return {**os.environ, **added}
