"""Builds the native extension `eva_fast._native` from csrc/; everything else is in pyproject.toml.

The library exposes a plain C interface that Python reaches through ctypes, so it needs neither
torch's nor Python's headers and one build, and one wheel, serves every version of both. A file whose
name ends in `_avx2.cpp` or `_avx512.cpp` is compiled for that instruction set; the code picks among
them at run time. Without a C++ compiler the install still succeeds; the package runs on plain PyTorch.
csrc/input/jpeg.cpp is built where libjpeg-turbo and its headers are found; elsewhere Pillow decodes.
"""

import importlib.util
import platform
import tempfile
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

X86 = platform.machine().lower() in ("x86_64", "amd64")
ISA_FLAGS = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma", "-mf16c"],
}
# -fopenmp at compile time only: the OpenMP runtime is the one torch has loaded (eva_fast/native.py
# loads it first). Two runtimes in one process would spin against each other for the same cores.
FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-fno-math-errno"]


JPEG_SOURCE = "csrc/input/jpeg.cpp"
# The functions of libjpeg-turbo (1.5 or newer) that other JPEG libraries do not have.
JPEG_PROBE = """
#include <cstdio>
#include <jpeglib.h>
int main() {
  jpeg_decompress_struct info;
  JDIMENSION column = 0, columns = 1;
  jpeg_crop_scanline(&info, &column, &columns);
  return int(jpeg_skip_scanlines(&info, 1));
}
"""


SOURCES_FILE = "csrc/sources.cpp"


def source_hash() -> str:
    """As `eva_fast.native` computes it when it loads the library; that file needs no torch to run."""
    spec = importlib.util.spec_from_file_location("eva_fast_native", "eva_fast/native.py")
    native = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(native)
    return native.source_hash(Path("csrc"))


def sources() -> list[str]:
    files = sorted(str(p) for p in Path("csrc").rglob("*.cpp"))
    return [f for f in files if X86 or not f.endswith(("_avx2.cpp", "_avx512.cpp"))]


class BuildNative(build_ext):
    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split("."))) + ".so"  # not Python's name: it is no module of one

    def build_extension(self, ext):
        objects = []
        libraries = ["m"]
        for source in ext.sources:
            if source == JPEG_SOURCE:
                if not self.finds_jpeg():
                    self.warn(
                        "eva_fast: libjpeg-turbo's headers were not found (apt install "
                        "libjpeg-dev); Pillow decodes JPEGs instead, slower."
                    )
                    continue
                libraries.append("jpeg")
            isa = next((i for i in ISA_FLAGS if source.endswith(f"_{i}.cpp")), None)
            objects += self.compiler.compile(
                [source],
                output_dir=self.build_temp,
                include_dirs=["csrc"],
                macros=[("EVA_SOURCES", f'"{source_hash()}"')] if source == SOURCES_FILE else [],
                extra_postargs=FLAGS + (ISA_FLAGS[isa] if isa else []),
                depends=ext.depends,
            )
        target = self.get_ext_fullpath(ext.name)
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        for earlier in Path(target).parent.glob("_native*.so"):
            earlier.unlink()
        self.compiler.link_shared_object(objects, target, target_lang="c++", libraries=libraries)

    def finds_jpeg(self) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            probe = Path(folder, "probe.cpp")
            probe.write_text(JPEG_PROBE)
            try:
                objects = self.compiler.compile([str(probe)], output_dir=folder)
                self.compiler.link_executable(
                    objects, str(Path(folder, "probe")), libraries=["jpeg"], target_lang="c++"
                )
            except (CompileError, LinkError):
                return False
        return True

    def run(self):
        try:
            super().run()
        except Exception as error:  # no compiler: any failure of the toolchain ends up here
            self.warn(
                f"eva_fast: the C++ kernels were not built ({error}). The package works without "
                "them, slower; `eva-fast doctor` shows what is installed."
            )


class AnyPython(bdist_wheel):
    """A wheel of one platform and of every Python 3."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


headers = sorted(str(p) for p in Path("csrc").rglob("*.h"))
setup(
    packages=[*find_packages(include=["eva_fast", "eva_fast.*"]), "eva_fast.kernels"],
    ext_modules=[Extension("eva_fast._native", sources(), depends=headers, optional=True)],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": AnyPython},
)
