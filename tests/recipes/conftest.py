"""A cache of a test's own, and pictures that take no time."""

import logging

import pytest
from PIL import Image

from eva_fast.train.examples import Examples


@pytest.fixture
def own_run_cache(tmp_path_factory, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    caplog.set_level(logging.INFO, logger="eva_fast")


@pytest.fixture
def small_pictures(monkeypatch):
    """What a run draws is beside the point here, and takes longer than its steps."""

    def draw(self, path, *_):
        Image.new("RGB", (8, 8)).save(path)
        return path

    monkeypatch.setattr(Examples, "draw", draw)
