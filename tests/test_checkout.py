"""A checkout that was never installed works where it lies."""

import subprocess
import sys
from pathlib import Path

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
