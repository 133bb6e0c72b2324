"""What is not read is said: once, with counts, in the log and to whoever asks the source."""

import io
import logging
import os
import shutil
import sys
import tarfile
import types

import pytest
from PIL import Image, PngImagePlugin
from rich.console import Console

from eva_fast.data import open_source
from eva_fast.data.checking import check, render
from eva_fast.data.decode import formats
from eva_fast.data.decode.pillow import decode
from tests.data.pictures import encoded, write_folder, write_shard


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    caplog.set_level(logging.INFO)


def _one_line(caplog):
    (record,) = caplog.records
    caplog.clear()
    return record.levelname, record.getMessage()


@pytest.mark.parametrize(
    "names, counts, remedy",
    [
        (["IMG_1.HEIC", "IMG_2.heic", "IMG_3.HEIF"], {".heic": 2, ".heif": 1}, "pillow-heif"),
        (["0a1b2c", "D9xYz.jpg_large", "x.png~"],
         {"no suffix": 1, ".jpg_large": 1, ".png~": 1}, "a text file of paths"),
        (["DSC1.NEF", "DSC2.nef", "_MG.CR2"], {".nef": 2, ".cr2": 1}, "have to be converted"),
        (["all.zip"], {".zip": 1}, "unpacked"),
    ],
)  # fmt: skip
def test_files_that_may_be_images(tmp_path, caplog, names, counts, remedy):
    root = write_folder(tmp_path / "a", 3)
    for name in names:
        shutil.copy(root / "00000.jpg", root / name)
    for _ in range(2):
        source = open_source(root)
        assert len(source) == 3 and source.left_out == counts
        level, text = _one_line(caplog)
        assert level == "WARNING" and remedy in text and str(root) in text
        assert all(f"{kind} {count}" in text for kind, count in counts.items())


def test_from_the_cache_too(tmp_path, caplog):
    root = write_folder(tmp_path / "a", 2)
    (root / "b.heic").write_bytes(b"")
    os.utime(root, (1e9, 1e9))
    said = []
    for _ in range(2):
        assert open_source(root).left_out == {".heic": 1}
        said.append(_one_line(caplog))
    assert said[0] == said[1]


def test_captions_are_a_note_and_hidden_files_none(tmp_path, caplog):
    root = write_folder(tmp_path / "a", 2)
    open_source(root)
    (root / ".DS_Store").write_text("x")
    open_source(root)
    assert not caplog.records
    (root / "00000.txt").write_text("x")
    assert open_source(root).left_out == {".txt": 1}
    assert _one_line(caplog)[0] == "INFO"


def test_a_suffix_a_file_is_counted_together(tmp_path, monkeypatch):
    monkeypatch.setattr("eva_fast.data.sources.left_out._MOST_SUFFIXES", 3)
    root = write_folder(tmp_path / "a", 1)
    for number in range(20):
        (root / f"x.{number}").write_text("")
    counts = open_source(root).left_out
    assert sum(counts.values()) == 20 and len(counts) == 5 and counts["other suffixes"] == 16


def test_no_image_at_all_names_what_is_there(tmp_path):
    (tmp_path / "IMG_1.HEIC").write_bytes(b"")
    with pytest.raises(ValueError, match=r"(?s)no image found .*\.heic 1.*pillow-heif"):
        open_source(tmp_path)


def test_shards_lists_and_mixes(tmp_path, caplog):
    shard = write_shard(tmp_path / "s.tar", range(3))
    with tarfile.open(shard, "a") as tar:
        tar.add(write_folder(tmp_path / "a", 1) / "00000.jpg", "IMG_1.HEIC")
    for data in (shard, f"{tmp_path}/s.tar"):
        assert open_source(data).left_out == {".txt": 3, ".heic": 1}
        assert ".heic 1" in _one_line(caplog)[1]
    with tarfile.open(tmp_path / "z.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "a/00000.jpg", "a/0.jpg")
        tar.add(tmp_path / "a/00000.jpg", "a/1")
    assert open_source(tmp_path / "z.tar.gz").left_out == {"no suffix": 1}
    caplog.clear()
    listed = tmp_path / "a/list.txt"
    listed.write_text("# two of them\n00000.jpg\n#00001.jpg\n")
    assert open_source(listed).left_out == {"comment lines": 2}
    level, text = _one_line(caplog)
    assert level == "INFO" and "comment lines 2 (# two of them)" in text
    mixed = open_source([shard, listed])
    assert mixed.left_out == {".txt": 3, "comment lines": 2, ".heic": 1}


def test_a_path_that_begins_like_a_comment(tmp_path):
    write_folder(tmp_path / "#1", 2)
    (tmp_path / "list.txt").write_text("#1/00000.jpg\n#1/00001.jpg\n# 1/00001.jpg\n")
    source = open_source(tmp_path / "list.txt")
    assert len(source) == 2 and source.left_out == {"comment lines": 1}


@pytest.mark.parametrize("nested", [True, False])
def test_a_tar_beside_images_hides_none(tmp_path, caplog, nested):
    write_folder(tmp_path / "data/train" if nested else tmp_path / "data", 10)
    write_shard(tmp_path / "data/samples.tar", range(3))
    source = open_source(tmp_path / "data")
    assert len(source) == 10 and source.left_out == {".tar": 1}
    level, text = _one_line(caplog)
    assert level == "WARNING" and "/*.tar" in text
    assert len(open_source(f"{tmp_path}/data/*.tar")) == 3


def test_a_preview_beside_shards_is_a_question(tmp_path):
    for number in range(3):
        write_shard(tmp_path / f"{number}.tar", range(2))
    (tmp_path / "dataset.json").write_text("{}")
    assert len(open_source(tmp_path)) == 6
    (tmp_path / "preview.png").write_bytes(encoded(0, form="PNG"))
    with pytest.raises(ValueError, match=r"1 images and 3 tar files.*/\*\.tar"):
        open_source(tmp_path)


def test_check_tells(tmp_path):
    root = write_folder(tmp_path, 3)
    for name in ("IMG_1.HEIC", "0a1b2c"):
        shutil.copy(root / "00000.jpg", root / name)
    result = check(root)
    assert result["left_out"] == {".heic": 1, "no suffix": 1}
    console = Console(file=io.StringIO(), width=100)
    console.print(render(result))
    (line,) = [text for text in console.file.getvalue().splitlines() if "left out" in text]
    assert ".heic 1" in line and "no suffix 1" in line


# ---- what a plugin of Pillow reads is read ----


@pytest.fixture
def plugin(monkeypatch):
    """A module named like pillow-heif, that teaches Pillow a format as it does."""

    class HeifImageFile(PngImagePlugin.PngImageFile):
        format = "HEIF"

        def _open(self):
            self.fp.seek(8)  # behind what stands for HEIF's header
            self.fp = types.SimpleNamespace(
                **{name: getattr(self.fp, name) for name in ("read", "seek", "tell", "close")}
            )
            super()._open()

    for name in ("OPEN", "EXTENSION", "MIME"):
        monkeypatch.setattr(Image, name, dict(getattr(Image, name)))
    monkeypatch.setattr(Image, "ID", list(Image.ID))

    def register_heif_opener():
        Image.register_open("HEIF", HeifImageFile, lambda prefix: prefix.startswith(b"HEIFHEIF"))
        Image.register_extensions("HEIF", [".heic", ".heif"])

    module = types.ModuleType("pillow_heif")
    module.__spec__ = types.SimpleNamespace(name="pillow_heif")
    module.register_heif_opener = register_heif_opener
    Image.init()
    formats.use_plugins.cache_clear()
    yield lambda: monkeypatch.setitem(sys.modules, "pillow_heif", module)
    formats.use_plugins.cache_clear()


def test_an_installed_plugin_is_used(tmp_path, plugin):
    root = write_folder(tmp_path, 2)
    (root / "IMG_1.HEIC").write_bytes(b"HEIFHEIF" + encoded(3, form="PNG"))
    assert len(open_source(root)) == 2
    plugin()
    formats.use_plugins.cache_clear()
    source = open_source(root)
    assert len(source) == 3 and not source.left_out
    assert source.name(2).endswith("IMG_1.HEIC")
    assert decode(source.read(2)).image.size == (40, 32)


def test_formats_that_this_pillow_was_built_without(tmp_path, monkeypatch):
    Image.init()
    known = {k: v for k, v in Image.EXTENSION.items() if k not in (".avif", ".avifs")}
    monkeypatch.setattr(Image, "EXTENSION", known)
    root = write_folder(tmp_path, 1)
    (root / "a.avif").write_bytes(b"")
    assert open_source(root).left_out == {".avif": 1}
