"""The documentation as a site: every link and name leads somewhere, and what is public is in it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import eva_fast

ROOT = Path(__file__).parent.parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "mkdocs.yml").is_file(), reason="needs a checkout"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site's folder, built as `mkdocs build --strict` builds it: a dead link is an error."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'eva-fast[docs]'")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_in_it(site):
    pages = [p.relative_to(ROOT / "docs").with_suffix("") for p in (ROOT / "docs").rglob("*.md")]
    assert pages
    missing = [page for page in pages if not (site / page / "index.html").is_file()]
    assert not missing
    menu = (site / "index.html").read_text()
    assert not [page for page in pages if f'href="{page.as_posix()}/"' not in menu]


def test_public_functions_and_classes_are_in_the_reference(site):
    reference = "".join(path.read_text() for path in (site / "api").rglob("index.html"))
    public = [getattr(eva_fast, name) for name in eva_fast.__all__]
    named = [f"{o.__module__}.{o.__qualname__}" for o in public if hasattr(o, "__qualname__")]
    assert len(named) > 5
    assert not [name for name in named if f'id="{name}"' not in reference]
