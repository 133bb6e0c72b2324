"""A walk goes on past a bad entry, and its index is what the disk holds now."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest

from eva_fast.data import open_source
from tests.data.pictures import write_shard


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def _files(folder, count):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"p{i}.jpg").write_bytes(b"x")  # the walk reads names alone


def _names(folder):
    source = open_source(str(folder))
    return [os.path.relpath(source.name(i), folder) for i in range(len(source))]


def _settle(*folders):
    """What is older than a second may be taken from the cache."""
    for folder in folders:
        os.utime(folder, (1e9, 1e9))


# ---- past a bad entry ----


@pytest.mark.parametrize("name, target", [("x.jpg", "x.jpg"), ("x", "x"), ("y.png", "gone.png")])
def test_links_that_lead_nowhere_are_passed_over(tmp_path, name, target):
    _files(tmp_path / "data", 4)
    (tmp_path / "data" / name).symlink_to(target)
    assert len(open_source(str(tmp_path / "data"))) == 4


def test_links_in_a_ring_are_passed_over(tmp_path):
    _files(tmp_path / "data/a", 2)
    (tmp_path / "data/b.jpg").symlink_to("c.jpg")
    (tmp_path / "data/c.jpg").symlink_to("b.jpg")
    (tmp_path / "data/a/up").symlink_to("..")
    source = open_source(str(tmp_path / "data"))
    assert len(source) == 2 and source.left_out == {"links that lead nowhere": 2}


@pytest.fixture
def lock(monkeypatch):
    """Locks a folder for whoever runs the tests: for root nothing is locked."""
    locked, scandir = set(), os.scandir

    def refusing(path="."):
        if str(path).rstrip("/") in locked:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    return locked


@pytest.mark.parametrize("name", ["lost+found", "a"])
def test_a_locked_folder_is_passed_over_until_it_opens(tmp_path, lock, caplog, name):
    _files(tmp_path / "data/b", 3)
    _files(tmp_path / "data" / name, 2)
    _settle(tmp_path / "data", tmp_path / "data/b", tmp_path / "data" / name)
    lock.add(str(tmp_path / "data" / name))
    for _ in range(2):  # walked, then from the cache
        caplog.clear()
        source = open_source(str(tmp_path / "data"))
        assert len(source) == 3 and source.left_out == {"folders that cannot be read": 1}
        assert name in caplog.text and caplog.text.count("\n") == 1
    lock.clear()
    assert len(open_source(str(tmp_path / "data"))) == 5


def test_a_locked_root_is_wrong_use(tmp_path, lock):
    _files(tmp_path / "data", 1)
    lock.add(str(tmp_path / "data"))
    with pytest.raises(ValueError, match="data cannot be read: Permission denied"):
        open_source(str(tmp_path / "data"))


def test_a_folder_that_breaks_off_is_read_as_far_as_it_goes(tmp_path, monkeypatch):
    """As on a network file system that stops to answer; the next walk tries again."""
    _files(tmp_path / "data/a", 3)
    _files(tmp_path / "data/b", 3)
    _settle(tmp_path / "data", tmp_path / "data/a", tmp_path / "data/b")
    scandir = os.scandir

    class BreaksOff:
        def __init__(self, path):
            self.inner = scandir(path)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.inner.close()

        def close(self):
            self.inner.close()

        def __iter__(self):
            yield next(self.inner)
            raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(
            os, "scandir", lambda p=".": BreaksOff(p) if str(p).endswith("/a") else scandir(p)
        )
        source = open_source(str(tmp_path / "data"))
        assert len(source) == 4 and source.left_out == {"folders that cannot be read": 1}
    assert len(open_source(str(tmp_path / "data"))) == 6


def test_what_is_no_regular_file_is_never_opened(tmp_path):
    _files(tmp_path / "data", 2)
    os.mkfifo(tmp_path / "data/fifo.jpg")
    (tmp_path / "data/zero.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "data/socket.jpg"))
        source = open_source(str(tmp_path / "data"))
    assert len(source) == 2
    assert source.left_out == {"named like images, but no regular files": 3}


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_an_image_replaced_by_what_is_no_file_does_not_block(tmp_path, kind):
    _files(tmp_path / "data", 2)
    source = open_source(str(tmp_path / "data"))
    (tmp_path / "data/p0.jpg").unlink()
    if kind == "fifo":
        os.mkfifo(tmp_path / "data/p0.jpg")
    else:
        (tmp_path / "data/p0.jpg").symlink_to("/dev/zero")
    errors = []

    def read():
        try:
            source.read(0)
        except OSError as error:
            errors.append(str(error))

    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    reading.join(20)
    assert errors == ["not a regular file"]


def test_names_that_are_not_unicode(tmp_path, caplog):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    _files(folder, 1)
    (folder / os.fsdecode(b"\xff.jpg")).write_bytes(b"y")
    (folder / os.fsdecode(b"\xff")).write_bytes(b"y")
    source = open_source(str(tmp_path))
    assert source.read(1) == b"y" and source.label(1) == os.fsdecode(b"caf\xe9")
    assert caplog.text.encode() and r"caf\udce9/\udcff" in caplog.text


# ---- what the disk holds now ----


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_targets_that_come_later_are_found(tmp_path, kind):
    _files(tmp_path / "data", 1)
    name, target = ("a.jpg", "later/p0.jpg") if kind == "file" else ("a", "later")
    (tmp_path / "data" / name).symlink_to(tmp_path / target)
    _settle(tmp_path / "data")
    assert len(open_source(str(tmp_path / "data"))) == 1
    _files(tmp_path / "later", 1)
    assert len(open_source(str(tmp_path / "data"))) == 2


@pytest.mark.parametrize("hops", [1, 3])
def test_a_target_that_goes_later_is_gone(tmp_path, hops):
    """Nothing in the folder of the link changes, and only the last hop's folder elsewhere does."""
    _files(tmp_path / "data", 1)
    _files(tmp_path / "store0", 2)
    for hop in range(1, hops):
        (tmp_path / f"store{hop}").mkdir()
        (tmp_path / f"store{hop}/p0.jpg").symlink_to(tmp_path / f"store{hop - 1}/p0.jpg")
    (tmp_path / "data/linked.jpg").symlink_to(f"../store{hops - 1}/p0.jpg")
    _settle(tmp_path / "data", *tmp_path.glob("store*"))
    assert _names(tmp_path / "data") == ["linked.jpg", "p0.jpg"]
    (tmp_path / "store0/p0.jpg").unlink()
    assert _names(tmp_path / "data") == ["p0.jpg"]
    (tmp_path / "store0/p0.jpg").mkdir()  # replaced by what is no image
    assert _names(tmp_path / "data") == ["p0.jpg"]


@pytest.mark.parametrize("where", ["in the folder", "outside", "to a folder read already"])
def test_a_link_to_a_folder_that_is_turned(tmp_path, where):
    """Old and new target have the same mtime, as after `cp -a` or unpacking an archive."""
    _files(tmp_path / "old", 1)
    _files(tmp_path / "new", 3)
    _files(tmp_path / "data/0", 1)
    current = tmp_path / "data/a" if where == "in the folder" else tmp_path / "current"
    current.symlink_to(tmp_path / ("data/0" if where == "to a folder read already" else "old"))
    if where != "in the folder":
        (tmp_path / "data/a").symlink_to(current)
    folders = [tmp_path / "old", tmp_path / "new", tmp_path / "data", tmp_path / "data/0"]
    _settle(*folders)
    before = len(open_source(str(tmp_path / "data")))
    assert before == (1 if where == "to a folder read already" else 2)
    current.unlink()
    current.symlink_to(tmp_path / "new")
    _settle(*folders)
    assert len(open_source(str(tmp_path / "data"))) == 4


@pytest.mark.parametrize("how", ["mtime set back", "another in its place"])
def test_a_folder_of_the_same_mtime_whose_content_changed(tmp_path, how):
    """As rsync -a and a mount do it."""
    _files(tmp_path / "data/a", 1)
    _files(tmp_path / "mounted", 3)
    _settle(tmp_path / "mounted", tmp_path / "data/a", tmp_path / "data")
    assert len(open_source(str(tmp_path / "data"))) == 1
    if how == "mtime set back":
        _files(tmp_path / "data/a", 3)
    else:
        (tmp_path / "data/a").rename(tmp_path / "away")
        (tmp_path / "mounted").rename(tmp_path / "data/a")
    _settle(tmp_path / "data/a", tmp_path / "data")
    assert len(open_source(str(tmp_path / "data"))) == 3


def test_a_mount_that_comes_and_goes(tmp_path):
    """Mount point and mounted folder have the same mtime."""
    _files(tmp_path / "data/a", 1)
    _files(tmp_path / "mounted", 3)
    folders = [tmp_path / "mounted", tmp_path / "data/a", tmp_path / "data"]
    _settle(*folders)
    assert len(open_source(str(tmp_path / "data"))) == 1
    # a name space of its own, in which whoever runs the tests may mount
    mount = f"mount --bind {tmp_path}/mounted {tmp_path}/data/a"
    inside = ["unshare", "-rm", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*inside, mount]).returncode:
        pytest.skip("needs user name spaces that may mount")
    code = "import sys, eva_fast.data; print(len(eva_fast.data.open_source(sys.argv[1])))"
    python = f"{sys.executable} -c '{code}' {tmp_path}/data"
    done = subprocess.run([*inside, f"{mount} && {python}"], capture_output=True, text=True)
    assert done.stdout == "3\n", done.stderr
    assert len(open_source(str(tmp_path / "data"))) == 1


@pytest.mark.parametrize("kind", ["list", "shard"])
def test_a_file_of_the_same_size_and_mtime_whose_content_changed(tmp_path, kind):
    _files(tmp_path, 4)
    name = "list.txt" if kind == "list" else "s.tar"

    def write(path, first):
        if kind == "list":
            path.write_text(f"p{first}.jpg\n")
        else:
            write_shard(path, range(first, first + 1))
        _settle(path)

    write(tmp_path / name, 1)
    before = open_source(tmp_path / name).name(0)
    write(tmp_path / "other", 2)
    (tmp_path / "other").rename(tmp_path / name)
    after = open_source(tmp_path / name).name(0)
    assert before != after and after.endswith(("p2.jpg", "00002.jpg"))


def test_links_into_many_folders_are_not_remembered(tmp_path, monkeypatch, cache):
    monkeypatch.setattr("eva_fast.data.sources.walk.MOST_WATCHED", 2)
    for number in range(4):
        _files(tmp_path / f"store/{number}", 1)
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / f"data/{number}.jpg").symlink_to(tmp_path / f"store/{number}/p0.jpg")
    _settle(tmp_path / "data", *tmp_path.glob("store/*"))
    assert len(open_source(str(tmp_path / "data"))) == 4
    shutil.rmtree(tmp_path / "store/3")
    assert len(open_source(str(tmp_path / "data"))) == 3


def test_a_folder_of_links_is_taken_from_the_cache(tmp_path, cache):
    _files(tmp_path / "store", 2)
    (tmp_path / "data").mkdir()
    for name in ("p0.jpg", "p1.jpg", "gone.jpg"):
        (tmp_path / "data" / name).symlink_to(f"../store/{name}")
    _settle(tmp_path / "data", tmp_path / "store")
    assert len(open_source(str(tmp_path / "data"))) == 2
    (built,) = cache.glob("eva_fast/index-*/index.json")
    then = built.stat().st_mtime_ns
    time.sleep(0.02)
    assert len(open_source(str(tmp_path / "data"))) == 2
    assert built.stat().st_mtime_ns == then


# ---- the folders of runs ----


def _run(folder):
    """What a run leaves."""
    _files(folder / "pictures", 2)
    for name in ("config.yaml", "environment.json", "picture.png"):
        (folder / name).write_text("x")


@pytest.mark.parametrize("where", ["run", "runs/eva-20300101", "."])
def test_a_run_s_pictures_are_no_data(tmp_path, where):
    _files(tmp_path / "data/a", 3)
    _run(tmp_path / "data" / where)
    _files(tmp_path / "data/pictures of mine", 1)
    names = _names(tmp_path / "data")
    assert names == ["a/p0.jpg", "a/p1.jpg", "a/p2.jpg", "pictures of mine/p0.jpg"]


def test_a_folder_with_a_configuration_alone_is_data(tmp_path):
    _files(tmp_path / "data/a/pictures", 1)
    (tmp_path / "data/a/config.yaml").write_text("x")
    assert len(open_source(str(tmp_path / "data"))) == 1
