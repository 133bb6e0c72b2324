"""A photograph, and both decoders in turn."""

import pytest

from bench.photos import photographs
from eva_fast import native
from eva_fast.data.decode import jpeg


@pytest.fixture(scope="module")
def photo():
    return photographs()[0].crop((100, 50, 260, 170))


@pytest.fixture(params=["native", "pillow"])
def path(request, monkeypatch):
    """The decoder that takes JPEGs."""
    if request.param == "pillow":
        monkeypatch.setattr(jpeg, "library", lambda: None)
    elif not native.available():
        pytest.skip("the native library is not built")
