"""docs/accelerate.md: its Python runs, and prints what it says."""

import contextlib
import io
import re
from pathlib import Path

import pytest
import timm

PAGE = Path(__file__).parents[2] / "docs" / "accelerate.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)


@pytest.fixture
def narrow(monkeypatch):
    """timm's networks with narrow blocks: their names, depths and sizes of images are the page's."""
    own = timm.create_model

    def create(name, **options):
        heads = 1 if name.startswith("samvit") else 2
        narrower = {"embed_dim": 32, "num_heads": heads}
        if name.startswith("samvit"):
            narrower |= {"depth": 2, "img_size": 64}
        return own(name, **narrower, **options)

    monkeypatch.setattr(timm, "create_model", create)


def test_the_page(narrow):
    assert len(BLOCKS) >= 5
    names = {}
    for block in BLOCKS:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(block, names)
        told = "\n".join(re.findall("^# (.*)$", block, re.M))
        if told.endswith("..."):
            assert printed.getvalue().startswith(told.removesuffix("..."))
        elif told:
            assert printed.getvalue().strip() == told
