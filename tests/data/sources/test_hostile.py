"""Shards, lists and their caches from anywhere: members that lie, links, devices, bombs. What is no
image is passed over, what cannot be read is one error that names the file, and nothing is written."""

import bz2
import gzip
import io
import json
import os
import tarfile

import pytest

from eva_fast import files
from eva_fast.data import open_source
from eva_fast.data.sources import shards
from eva_fast.data.sources import streams as streams_module
from eva_fast.data.sources import tar as tar_module
from eva_fast.errors import UsageError
from tests.data.pictures import write_shard

IMAGE = b"\xff\xd8 bytes of an image"
FORMS = ["{}", "pipe:cat {}"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(streams_module, "PAUSE_SECONDS", 0.0)


def member(name, data=IMAGE, **fields):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT) + data + b"\0" * (-len(data) % 512)


def shard(path, *members, end=b"\0" * 1024):
    path.write_bytes(b"".join(members) + end)
    return path


def everything(source):
    if isinstance(source, streams_module.StreamSource):
        return [
            (name, data) for s in source.shards for _, name, data in streams_module.read_shard(s)
        ]
    return [(source.name(i), source.item(i).image) for i in range(len(source))]


@pytest.mark.parametrize("form", FORMS)
def test_links_devices_and_pipes_are_no_images(tmp_path, form):
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    kinds = (
        tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE,
        tarfile.DIRTYPE,
    )  # fmt: skip
    odd = [
        member(f"{n}.jpg", b"", type=kind, linkname=str(tmp_path / "secret.jpg"))
        for n, kind in enumerate(kinds)
    ]
    path = shard(tmp_path / "s.tar", *odd, member("good.jpg"))
    found = everything(open_source(form.format(path)))
    assert [(os.path.basename(name), data) for name, data in found] == [("good.jpg", IMAGE)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "name", ["../../out.jpg", "/etc/out.jpg", "a/../../../out.jpg", "\x1b[2J.jpg"]
)
def test_names_that_lead_outside_are_names_alone(tmp_path, form, name):
    """Nothing is unpacked: a member's folder is its label."""
    (tmp_path / "in").mkdir()
    path = shard(tmp_path / "in" / "s.tar", member(name))
    found = everything(open_source(form.format(path)))
    assert [data for _, data in found] == [IMAGE]
    assert not list(tmp_path.rglob("out.jpg")) and not os.path.exists("/etc/out.jpg")


def pax(**records):
    text = b""
    for key, value in records.items():
        body = f" {key.replace('__', '.')}={value}\n".encode()
        length = len(body) + 1
        while len(str(length)) + len(body) != length:
            length = len(str(length)) + len(body)
        text += str(length).encode() + body
    return member("x", text, type=tarfile.XHDTYPE)


LIES = {
    "a name of gigabytes": member("x", b"", type=tarfile.GNUTYPE_LONGNAME, size=1 << 33),
    "a link of gigabytes": member("x", b"", type=tarfile.GNUTYPE_LONGLINK, size=1 << 33),
    "words of gigabytes": member("x", b"", type=tarfile.XHDTYPE, size=1 << 33),
    "words for all": member("x", b"", type=tarfile.XGLTYPE, size=1 << 33),
    "before its beginning": member("a.jpg", b"", size=-512),
    "behind every end": member("a.jpg", b"", size=1 << 70),
    "terabytes": member("a.jpg", b"", size=1 << 42),
    "headers of headers": member("x", b"n", type=tarfile.GNUTYPE_LONGNAME) * 3000,
    "words that go back": pax(size=-1024) + member("a.jpg"),
    "a size that is none": pax(GNU__sparse__size="x", GNU__sparse__major=1) + member("a.jpg"),
    "holes that are none": pax(GNU__sparse__map="x,y", GNU__sparse__size=4) + member("a.jpg"),
    "no holes": member("a.jpg", b"", type=tarfile.GNUTYPE_SPARSE)[:482] + b"\1" + b"\0" * 29,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lie", LIES)
def test_headers_that_lie(tmp_path, little_memory, lie, form):
    path = shard(tmp_path / "s.tar", member("good.jpg"), LIES[lie])
    with pytest.raises(UsageError, match=r"s\.tar.* (is not a whole tar file|cannot be read)"):
        everything(open_source(form.format(path)))


@pytest.mark.parametrize("form", FORMS)
def test_holes_that_stand_for_terabytes(tmp_path, little_memory, form):
    sparse = pax(GNU__sparse__map="0,0", GNU__sparse__size=1 << 42, GNU__sparse__name="a.jpg")
    path = shard(tmp_path / "s.tar", sparse, member("a.jpg"), member("good.jpg"))
    assert [os.path.basename(n) for n, _ in everything(open_source(form.format(path)))] == [
        "good.jpg"
    ]


def test_what_unpacks_to_gigabytes(tmp_path, little_memory, monkeypatch):
    """An image of a gigabyte in a shard of a megabyte is none; many small ones are read as a stream."""
    monkeypatch.setattr(tar_module, "MOST_IMAGE", 1 << 20)
    bomb = b"".join([member("good.jpg"), member("a.jpg", b"\0" * (2 << 20)), b"\0" * 1024])
    (tmp_path / "s.tar.gz").write_bytes(gzip.compress(bomb))
    with pytest.raises(UsageError, match=r"a\.jpg has 2,097,152 bytes, which no image has"):
        open_source(tmp_path / "s.tar.gz")
    monkeypatch.setattr(shards, "MOST_IN_MEMORY", 3 << 19)
    many = b"".join([*(member(f"{n}.jpg", b"\0" * (1 << 19)) for n in range(4)), b"\0" * 1024])
    (tmp_path / "s.tar.gz").write_bytes(gzip.compress(many))
    source = open_source(tmp_path / "s.tar.gz")
    assert isinstance(source, streams_module.StreamSource) and len(everything(source)) == 4


def test_damaged_bz2(tmp_path):
    raw = bytearray(bz2.compress(member("good.jpg") * 40 + b"\0" * 1024))
    raw[len(raw) // 2] ^= 255
    (tmp_path / "s.tar.bz2").write_bytes(raw)
    with pytest.raises(UsageError, match=r"s\.tar\.bz2 is not a whole tar file"):
        open_source(tmp_path / "s.tar.bz2")


def test_a_comment_longer_than_a_name_may_be(tmp_path):
    write_shard(tmp_path / "s.tar", range(1))
    (tmp_path / "a.jpg").write_bytes(IMAGE)
    (tmp_path / "l.txt").write_bytes(b"# " + b"words " * 100 + b"\na.jpg\n~" + b"x" * 300 + b"\n")
    with pytest.raises(FileNotFoundError, match="1 of the paths in"):
        open_source(tmp_path / "l.txt")


@pytest.mark.parametrize(
    "line", [b"a\0b.jpg", b"\xff.jpg", b"/dev/zero", b"x" * 5000, b"pipe", b"/" * 9]
)
def test_lines_that_name_no_file(tmp_path, line):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "l.txt").write_bytes(line + b"\n")
    with pytest.raises(UsageError, match=r"l\.txt"):
        open_source(tmp_path / "l.txt")


def damage(folder, how):
    if how in ("[]", "[" * 100_000, '{"count": [], "signature": 3}', "\xff"):
        (folder / "index.json").write_bytes(how.encode("latin-1"))
    else:
        path = folder / how
        path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize(
    "how",
    [
        "[]", "[" * 100_000, '{"count": [], "signature": 3}', "\xff", "names.bytes", "names.ends",
        "groups.bytes", "groups.ends", "group_of.u32", "extents.u64",
    ],
    ids=lambda how: how[:20],
)  # fmt: skip
def test_a_damaged_index_is_built_anew(tmp_path, how):
    path = write_shard(tmp_path / "s.tar", range(3))
    os.utime(path, (1e9, 1e9))
    before = everything(open_source(path))
    (folder,) = (p for p in files.cache_folder().glob("index-*") if p.is_dir())
    stored = (folder / "index.json").read_text()
    damage(folder, how)
    assert everything(open_source(path)) == before
    assert json.loads((folder / "index.json").read_text())["count"] == json.loads(stored)["count"]


def test_the_lies_are_what_they_are():
    """tarfile alone goes wrong on them, or this tests nothing."""
    with (
        pytest.raises((ValueError, RecursionError)),
        tarfile.open(fileobj=io.BytesIO(LIES["headers of headers"])) as tar,
    ):
        tar.next()


@pytest.mark.parametrize("data", [".", "*.tar", "pipe*", "{pi,x}pe:mkdir made;.tar"])
def test_files_that_are_called_as_commands_are(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    write_shard(tmp_path / "pipe:mkdir made;.tar", range(3))
    if data.startswith("{"):  # which names a second one
        with pytest.raises(FileNotFoundError, match="1 of 2 shards do not exist"):
            open_source(data)
    else:
        assert len(open_source(data)) == 3
    assert not (tmp_path / "made").exists()
