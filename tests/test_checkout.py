"""A checkout: it works where it lies, never installed, and an install takes all of it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Without what an editable install adds, which would find the kernels.
CODE = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "__editable__" not in getattr(f, "__module__", "")]
sys.path.insert(0, sys.argv[1])
import eva_fast.kernels
from eva_fast.kernels import aot_case
import eva_fast.kernels.aot_case as same
assert aot_case is same and eva_fast.kernels.aot_case is same
print(eva_fast.kernels.__path__[0], eva_fast.__file__)
"""


def test_kernels_are_found_beside_the_package():
    command = [sys.executable, "-c", CODE, str(ROOT)]
    done = subprocess.run(command, cwd=ROOT.anchor, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(ROOT / "kernels"), str(ROOT / "eva_fast" / "__init__.py")]


def test_an_install_takes_every_module(tmp_path):
    pytest.importorskip("setuptools.command.bdist_wheel", reason="setup.py needs setuptools 70.1")
    taken = tmp_path / "taken"
    command = ["setup.py", "-q", "egg_info", "-e", str(tmp_path), "build_py", "-d", str(taken)]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    package = [path.relative_to(ROOT) for path in (ROOT / "eva_fast").rglob("*.py")]
    kernels = [Path("eva_fast") / path.relative_to(ROOT) for path in ROOT.glob("kernels/*.py")]
    assert len(package) > 300 and len(kernels) > 20
    assert not [str(path) for path in package + kernels if not (taken / path).is_file()]
