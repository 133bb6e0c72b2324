"""A run goes on after what people do between its parts: move, tidy up, write a path otherwise."""

import json
import logging
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import eva_fast
from eva_fast.model import create_model
from eva_fast.teachers import load_teacher
from eva_fast.train import checkpoint
from eva_fast.train.examples import Examples
from eva_fast.weights import write_student
from tests.data.pictures import write_shard

TINY = dict(
    model="eva_ti_patch16_96", depth=1, embed_dim=32, num_heads=2, mlp_hidden=64, steps=2, batch_size=4,
    teacher="hog", workers=0, kernels="torch", device="cpu", progress=False,
)  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    caplog.set_level(logging.INFO, logger="eva_fast")


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    """What a run draws is beside the point here, and takes longer than its steps."""

    def draw(self, path, *_):
        Image.new("RGB", (8, 8)).save(path)
        return path

    monkeypatch.setattr(Examples, "draw", draw)


def _pictures(folder, count=12, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    g = np.random.default_rng(seed)
    for number in range(count):
        pixels = g.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 48)).save(folder / f"p{number:02d}.png")
    return folder


def _train(data, out, **options):
    return eva_fast.pretrain(data, out=out, **{**TINY, **options})


def _go_on(data, out, **options):
    options = {"steps": 4, **options}
    result = _train(data, out, resume="auto", **options)
    assert result.metrics["step"] == options["steps"]
    return result


def _weights(out):
    return (out / "model.safetensors").read_bytes()


# ---- its own outputs are no data ----


@pytest.mark.parametrize("out", ["run", "runs/a/b", "."])
def test_outputs_inside_the_data(tmp_path, monkeypatch, out):
    """`cd photos; pretrain --data . --out run`, which leaves pictures there."""
    monkeypatch.chdir(_pictures(tmp_path / "photos"))
    _train(".", out, picture_every=1)
    assert len(list((tmp_path / "photos" / out / "pictures").iterdir())) == 2
    _go_on(".", out)
    assert len(eva_fast.data.open_source(".")) == 12
    _train(".", "another run")  # the first one's pictures are no data of this
    _go_on(".", "another run")


def test_drawing_into_the_data_is_refused(tmp_path):
    _pictures(tmp_path / "pictures")
    with pytest.raises(ValueError, match="would draw into its data"):
        _train(str(tmp_path / "pictures"), tmp_path)


# ---- bad files ----


def _damage(folder):
    for name in ("p00.png", "p05.png", "p11.png"):
        (folder / name).write_bytes(b"no picture")


@pytest.mark.parametrize("kind", ["folder", "list", "mix", "paths"])
def test_bad_files_are_deleted_between(tmp_path, kind):
    """Numbers stay what they were: the run ends with the weights of one that nobody tidied up."""
    folder = _pictures(tmp_path / "data")
    _damage(folder)
    other = _pictures(tmp_path / "other", 5, seed=1)

    def data():
        paths = sorted(folder.glob("*.png"))
        if kind == "paths":
            return list(map(str, paths))
        if kind == "list":
            listed = tmp_path / "list.txt"
            listed.write_text("".join(f"data/{path.name}\n" for path in paths))
            return str(listed)
        return f"{other}:0.3,{folder}:0.7" if kind == "mix" else str(folder)

    options = dict(max_bad_share=0.9, batch_size=12)
    for out in ("tidied", "left"):
        _train(data(), tmp_path / out, **options)
    lines = (tmp_path / "tidied/bad_images.jsonl").read_text().splitlines()
    bad = [json.loads(line)["name"] for line in lines]
    assert len(bad) == 3
    _go_on(data(), tmp_path / "left", **options)
    for name in bad:
        os.unlink(name)
    _go_on(data(), tmp_path / "tidied", **options)
    assert _weights(tmp_path / "tidied") == _weights(tmp_path / "left")
    if kind == "folder":  # and once more
        _go_on(data(), tmp_path / "tidied", steps=5, **options)


@pytest.mark.parametrize("kind", ["folder", "list", "mix"])
@pytest.mark.parametrize("kept", [False, True], ids=["without bad files", "with them"])
def test_data_moves_after_bad_files_are_deleted(tmp_path, kind, kept):
    """Copied elsewhere without what could not be read, as with it: the same weights."""
    options = dict(max_bad_share=0.9, batch_size=12)

    def data(root):
        paths = sorted((root / "data").glob("*.png"))
        (root / "list.txt").write_text("".join(f"data/{path.name}\n" for path in paths))
        folder, other = f"{root}/data", f"{root}/other"
        return {"folder": folder, "list": f"{root}/list.txt", "mix": f"{other},{folder}"}[kind]

    old = tmp_path / "old"
    _damage(_pictures(old / "data"))
    _pictures(old / "other", 5, seed=1)
    for out in ("moved", "left"):
        _train(data(old), tmp_path / out, **options)
    shutil.copytree(old, tmp_path / "elsewhere/new")
    _go_on(data(old), tmp_path / "left", **options)
    shutil.rmtree(old)
    if not kept:
        for name in ("p00.png", "p05.png", "p11.png"):
            (tmp_path / "elsewhere/new/data" / name).unlink()
    _go_on(data(tmp_path / "elsewhere/new"), tmp_path / "moved", **options)
    assert _weights(tmp_path / "moved") == _weights(tmp_path / "left")


@pytest.mark.parametrize("kind", ["list", "paths"])
def test_bad_files_are_taken_out_of_a_list(tmp_path, kind):
    folder = _pictures(tmp_path / "data")
    _damage(folder)
    options = dict(max_bad_share=0.9, batch_size=12)

    def data(*without):
        paths = [path for path in sorted(folder.glob("*.png")) if path.name not in without]
        (tmp_path / "list.txt").write_text("".join(f"./data/{path.name}\n" for path in paths))
        return str(tmp_path / "list.txt") if kind == "list" else list(map(str, paths))

    for out in ("tidied", "left"):
        _train(data(), tmp_path / out, **options)
    _go_on(data(), tmp_path / "left", **options)
    _go_on(data("p00.png", "p05.png", "p11.png"), tmp_path / "tidied", **options)
    assert _weights(tmp_path / "tidied") == _weights(tmp_path / "left")
    with pytest.raises(ValueError, match="the data holds 8 now"):
        _go_on(
            data("p00.png", "p05.png", "p11.png", "p03.png"),
            tmp_path / "tidied",
            steps=5,
            **options,
        )


def test_other_bytes_under_the_same_names_are_told(tmp_path, caplog):
    data = str(_pictures(tmp_path / "data"))
    _train(data, tmp_path / "r")
    _go_on(data, tmp_path / "r", steps=3)
    assert "other bytes" not in caplog.text
    _pictures(tmp_path / "data", seed=1)
    _go_on(data, tmp_path / "r")
    assert "other bytes than when" in caplog.text


def test_other_files_deleted_are_noticed(tmp_path):
    folder = _pictures(tmp_path / "data")
    _damage(folder)
    _train(str(folder), tmp_path / "r", max_bad_share=0.9, batch_size=12)
    for name in ("p00.png", "p07.png"):  # one bad, one good
        (folder / name).unlink()
    options = dict(max_bad_share=0.9, batch_size=12)
    with pytest.raises(ValueError, match="started with 12 images, and the data holds 10 now"):
        _go_on(str(folder), tmp_path / "r", **options)
    (folder / "p07.png").touch()
    _go_on(str(folder), tmp_path / "r", **options)


@pytest.mark.parametrize("how", ["emptied", "mended"])
def test_bad_files_that_stay_under_their_names(tmp_path, how):
    folder = _pictures(tmp_path / "data")
    whole = (folder / "p05.png").read_bytes()
    _damage(folder)
    _train(str(folder), tmp_path / "r", max_bad_share=0.9, batch_size=12)
    (folder / "p05.png").write_bytes(b"" if how == "emptied" else whole)
    _go_on(str(folder), tmp_path / "r", max_bad_share=0.9, batch_size=12)


def test_new_files_are_noticed(tmp_path):
    folder = _pictures(tmp_path / "data")
    _train(str(folder), tmp_path / "r")
    shutil.copy(folder / "p00.png", folder / "new.png")
    with pytest.raises(ValueError, match="13 now: put the new ones elsewhere"):
        _go_on(str(folder), tmp_path / "r")


# ---- the same data by another name ----


@pytest.mark.parametrize("first, again", [("data", "data/"), ("data", "{}"), ("{}/", "./data")])
def test_a_path_written_otherwise(tmp_path, monkeypatch, first, again):
    """Trailing slashes, relative and absolute."""
    folder = _pictures(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    _train(first.format(folder), tmp_path / "r")
    _go_on(again.format(folder), tmp_path / "r")


@pytest.mark.parametrize("kind", ["folder", "list", "shards", "mix", "paths"])
def test_data_that_moved(tmp_path, caplog, kind):
    def make(root):
        _pictures(root / "a")
        (root / "list.txt").write_text("".join(f"a/p{n:02d}.png\n" for n in range(12)))
        write_shard(root / "s.tar", range(12))

    def data(root):
        return {
            "folder": f"{root}/a", "list": f"{root}/list.txt", "shards": f"{root}/s.tar",
            "mix": f"{root}/a:0.5,{root}/list.txt:0.5",
            "paths": sorted(map(str, (root / "a").glob("*"))),
        }[kind]  # fmt: skip

    make(tmp_path / "old")
    _train(data(tmp_path / "old"), tmp_path / "r")
    shutil.move(tmp_path / "old", tmp_path / "new")
    _go_on(data(tmp_path / "new"), tmp_path / "r")
    assert "the same names, the same bytes" in caplog.text


MOVED = r"data: .*old.*new.*--data-moved"
MORE = "12 images, and the data holds 13 now"


@pytest.mark.parametrize("how", ["other bytes", "other names", "more", "names forgotten"])
def test_other_data_is_refused_unless_told_that_it_moved(tmp_path, how):
    _train(str(_pictures(tmp_path / "old")), tmp_path / "r")
    new = _pictures(tmp_path / "new", 13 if how == "more" else 12, seed=how == "other bytes")
    if how == "other names":
        (new / "p00.png").rename(new / "q.png")
    if how == "names forgotten":  # as by a version that did not write them
        _edit_state(
            tmp_path / "r", lambda loader: (loader.pop("contents"), loader["feed"].pop("names"))
        )
    with pytest.raises(ValueError, match=MORE if how == "more" else MOVED):
        _go_on(str(new), tmp_path / "r")
    if how == "more":
        with pytest.raises(ValueError, match=MORE):
            _go_on(str(new), tmp_path / "r", data_moved=True)
        return
    _go_on(str(new), tmp_path / "r", data_moved=True)
    _go_on(str(new), tmp_path / "r", steps=5)  # told once


# ---- a teacher that moved ----


def _teacher_file(path, seed=0):
    torch.manual_seed(seed)
    student = create_model("eva_ti_patch16_96", depth=1, embed_dim=64, num_heads=1, mlp_hidden=32)
    path.parent.mkdir(exist_ok=True)
    write_student(student, path)
    return path


def test_a_teacher_that_moved(tmp_path, caplog):
    data, old = str(_pictures(tmp_path / "data")), _teacher_file(tmp_path / "old" / "t.safetensors")
    _train(data, tmp_path / "r", teacher=old)
    shutil.move(tmp_path / "old", tmp_path / "new")
    new = tmp_path / "new" / "t.safetensors"
    _go_on(data, tmp_path / "r", teacher=new)
    assert "the same weights" in caplog.text
    _go_on(data, tmp_path / "r", teacher=load_teacher(new, grid=(6, 6)), steps=5)  # from Python
    other = _teacher_file(tmp_path / "other.safetensors", seed=1)
    with pytest.raises(ValueError, match="teacher: .*its weights differ.*--teacher-moved"):
        _go_on(data, tmp_path / "r", teacher=other, steps=6)
    _go_on(data, tmp_path / "r", teacher=other, teacher_moved=True, steps=6)
    assert "as asked" in caplog.text and "computes otherwise" not in caplog.text


def test_other_weights_under_the_name_of_the_teacher_are_noticed(tmp_path, caplog):
    data, teacher = str(_pictures(tmp_path / "data")), tmp_path / "t.safetensors"
    _train(data, tmp_path / "r", teacher=_teacher_file(teacher))
    _go_on(data, tmp_path / "r", teacher=teacher)
    assert "computes otherwise" not in caplog.text
    _go_on(data, tmp_path / "r", teacher=_teacher_file(teacher, seed=1), steps=5)
    assert "computes otherwise" in caplog.text


def test_a_teacher_that_moved_since_a_run_of_an_earlier_version(tmp_path):
    data = str(_pictures(tmp_path / "data"))
    _train(data, tmp_path / "r", teacher=_teacher_file(tmp_path / "a.safetensors"))
    _edit_state(tmp_path / "r", lambda state: state.pop("teacher"), None)
    new = shutil.move(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="nothing tells whether.*--teacher-moved"):
        _go_on(data, tmp_path / "r", teacher=new)
    _go_on(data, tmp_path / "r", teacher=new, teacher_moved=True)


@pytest.mark.parametrize("kind", ["folder", "shards", "list"])
def test_other_files_under_the_same_count_are_noticed(tmp_path, kind):
    folder = _pictures(tmp_path / "data")
    names = [f"data/p{n:02d}.png\n" for n in range(12)]

    def data(changed):
        if kind == "shards":
            return str(write_shard(tmp_path / "s.tar", range(changed, 12 + changed)))
        if kind == "list":
            (tmp_path / "l.txt").write_text("".join(names[::-1] if changed else names))
            return str(tmp_path / "l.txt")
        if changed:
            (folder / "p03.png").rename(folder / "q.png")
        return str(folder)

    _train(data(False), tmp_path / "r")
    with pytest.raises(ValueError, match="as many, but under other names or in another order"):
        _go_on(data(True), tmp_path / "r")


def test_other_shards_of_a_stream_are_noticed(tmp_path):
    for name in "ab":
        write_shard(tmp_path / f"{name}.tar", range(12))
    _train(f"file://{tmp_path}/a.tar", tmp_path / "r")
    _go_on(f"file://{tmp_path}/a.tar", tmp_path / "r")
    with pytest.raises(ValueError, match="hold other images.*--data-moved"):
        _go_on(f"file://{tmp_path}/b.tar", tmp_path / "r", steps=5)
    (tmp_path / "c").mkdir()
    shutil.move(tmp_path / "a.tar", tmp_path / "c/a.tar")
    with pytest.raises(ValueError, match="of streams are not compared.*--data-moved"):
        _go_on(f"file://{tmp_path}/c/a.tar", tmp_path / "r", steps=5)
    _go_on(f"file://{tmp_path}/c/a.tar", tmp_path / "r", steps=5, data_moved=True)


def test_a_checkpoint_without_names_goes_on(tmp_path):
    folder = _pictures(tmp_path / "data")
    _train(str(folder), tmp_path / "r")
    _edit_state(
        tmp_path / "r", lambda loader: (loader.pop("contents"), loader["feed"].pop("names"))
    )
    _go_on(str(folder), tmp_path / "r")
    state = checkpoint.read_state(checkpoint.newest(tmp_path / "r/checkpoints"))
    assert len(state["loader"]["feed"]["names"]) == 1 and len(state["loader"]["contents"]) == 12


def _edit_state(out, edit, part="loader"):
    """Writes a run's newest checkpoint again with another state of the loader, or of all."""
    folder = checkpoint.newest(out / "checkpoints")
    state = checkpoint.read_state(folder)
    edit(state[part] if part else state)
    (folder / checkpoint.STATE).write_text(json.dumps(state))
    manifest = json.loads((folder / checkpoint.MANIFEST).read_text())
    path = folder / checkpoint.STATE
    manifest["files"][path.name] = [path.stat().st_size, checkpoint.crc32(path)]
    (folder / checkpoint.MANIFEST).write_text(json.dumps(manifest))


def test_the_record_keeps_when_it_began_and_the_timings_of_its_kernels(tmp_path):
    data, out = _pictures(tmp_path / "pictures"), tmp_path / "run"

    def environment():
        return json.loads((out / "environment.json").read_text())

    _train(data, out, kernels="auto")
    begun = environment()
    kernels = begun["kernels"]
    assert kernels["bias_gelu"]["implementation"] in kernels["bias_gelu"]["milliseconds"] or (
        kernels["bias_gelu"]["why"] == "alone"
    )
    _go_on(data, out, kernels="auto")
    gone_on = environment()
    assert [start["step"] for start in gone_on["starts"]] == [0, 2]
    assert gone_on["starts"][0] == begun["starts"][0]
    again = gone_on["kernels"]
    assert {op: again[op]["milliseconds"] for op in again} == {
        op: kernels[op]["milliseconds"] for op in again
    }
    assert {entry["why"] for entry in again.values()} <= {"resumed", "measured"}
    (out / "environment.json").write_text("[")
    _go_on(data, out, kernels="torch", steps=6)
    assert environment()["kernels"] == {} and len(environment()["starts"]) == 1
