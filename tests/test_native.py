"""Loading the C++ library: which one is used, and what is said where none is."""

import importlib.util
import logging
import shutil
from pathlib import Path

import pytest

from eva_fast import native

PACKAGE = Path(native.__file__).parent
CSRC = PACKAGE.parent / "csrc"

pytestmark = pytest.mark.skipif(
    not native.available() or not CSRC.is_dir(), reason="needs a checkout and its C++ library"
)


@pytest.fixture
def load(tmp_path):
    """A copy of the package's loader and library in a folder of its own, as a module to be loaded."""
    (tmp_path / "eva_fast").mkdir()
    shutil.copy(native.__file__, tmp_path / "eva_fast")
    (library,) = PACKAGE.glob("_native*.so")
    shutil.copy(library, tmp_path / "eva_fast")

    def fresh():
        path = tmp_path / "eva_fast" / "native.py"
        spec = importlib.util.spec_from_file_location("copied_native", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return fresh


def test_without_sources_beside_it_the_library_is_taken_as_it_is(load):
    copied = load()
    assert copied.obstacle() is None and copied.available() and copied.library() is not None
    assert copied.build() == native.build()


def test_a_library_of_the_sources_beside_it_is_used(load, tmp_path):
    shutil.copytree(CSRC, tmp_path / "csrc")
    assert load().obstacle() is None


@pytest.mark.parametrize("change", ["edited", "added", "removed"])
def test_a_stale_library_is_refused_once_with_the_remedy(load, tmp_path, change, caplog):
    shutil.copytree(CSRC, tmp_path / "csrc")
    if change == "edited":
        with (tmp_path / "csrc" / "ops" / "gemm.h").open("a") as file:
            file.write("// another thought\n")
    elif change == "added":
        (tmp_path / "csrc" / "ops" / "softer.h").touch()
    else:
        (tmp_path / "csrc" / "ops" / "gemm.h").unlink()
    copied = load()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert not copied.available() and copied.library() is None
    assert "stale" in copied.obstacle() and "pip install -e ." in copied.obstacle()
    (record,) = caplog.records
    assert "not used" in record.getMessage() and "pip install -e ." in record.getMessage()


def test_what_is_missing_or_broken_is_named(load, tmp_path):
    (library,) = (tmp_path / "eva_fast").glob("*.so")
    library.write_bytes(b"not a library")
    assert "cannot be loaded" in load().obstacle()
    library.unlink()
    copied = load()
    assert "is not built" in copied.obstacle() and copied.build() is None


def test_a_stale_library_makes_kernels_native_an_error(monkeypatch):
    from eva_fast.ops import choose

    monkeypatch.setattr(native, "obstacle", lambda: "is stale: run `pip install -e .` again")
    choose.set_kernels("native")
    with pytest.raises(ValueError, match="cannot run bias_gelu on cpu .*stale.*pip install -e"):
        choose.implementation("bias_gelu", "cpu")
    choose.set_kernels("auto")
    assert choose.implementation("bias_gelu", "cpu") == "torch"
