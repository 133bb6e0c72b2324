"""A run goes on where its data or its teacher moved, and says where they are others."""

import shutil

import pytest
import torch

from eva_fast.model import create_model
from eva_fast.teachers import load_teacher
from eva_fast.weights import write_student
from tests.data.pictures import write_shard
from tests.recipes.going_on import edit_state, go_on, pictures, train

pytestmark = pytest.mark.usefixtures("own_run_cache", "small_pictures")


@pytest.mark.parametrize("kind", ["folder", "list", "shards", "mix", "paths"])
def test_data_that_moved(tmp_path, caplog, kind):
    def make(root):
        pictures(root / "a")
        (root / "list.txt").write_text("".join(f"a/p{n:02d}.png\n" for n in range(12)))
        write_shard(root / "s.tar", range(12))

    def data(root):
        return {
            "folder": f"{root}/a", "list": f"{root}/list.txt", "shards": f"{root}/s.tar",
            "mix": f"{root}/a:0.5,{root}/list.txt:0.5",
            "paths": sorted(map(str, (root / "a").glob("*"))),
        }[kind]  # fmt: skip

    make(tmp_path / "old")
    train(data(tmp_path / "old"), tmp_path / "r")
    shutil.move(tmp_path / "old", tmp_path / "new")
    go_on(data(tmp_path / "new"), tmp_path / "r")
    assert "the same names, the same bytes" in caplog.text


MOVED = r"data: .*old.*new.*--data-moved"


MORE = "12 images, and the data holds 13 now"


@pytest.mark.parametrize("how", ["other bytes", "other names", "more", "names forgotten"])
def test_other_data_is_refused_unless_told_that_it_moved(tmp_path, how):
    train(str(pictures(tmp_path / "old")), tmp_path / "r")
    new = pictures(tmp_path / "new", 13 if how == "more" else 12, seed=how == "other bytes")
    if how == "other names":
        (new / "p00.png").rename(new / "q.png")
    if how == "names forgotten":  # as by a version that did not write them
        edit_state(
            tmp_path / "r", lambda loader: (loader.pop("contents"), loader["feed"].pop("names"))
        )
    with pytest.raises(ValueError, match=MORE if how == "more" else MOVED):
        go_on(str(new), tmp_path / "r")
    if how == "more":
        with pytest.raises(ValueError, match=MORE):
            go_on(str(new), tmp_path / "r", data_moved=True)
        return
    go_on(str(new), tmp_path / "r", data_moved=True)
    go_on(str(new), tmp_path / "r", steps=5)  # told once


def _teacher_file(path, seed=0):
    torch.manual_seed(seed)
    student = create_model("eva_ti_patch16_96", depth=1, embed_dim=64, num_heads=1, mlp_hidden=32)
    path.parent.mkdir(exist_ok=True)
    write_student(student, path)
    return path


def test_a_teacher_that_moved(tmp_path, caplog):
    data, old = str(pictures(tmp_path / "data")), _teacher_file(tmp_path / "old" / "t.safetensors")
    train(data, tmp_path / "r", teacher=old)
    shutil.move(tmp_path / "old", tmp_path / "new")
    new = tmp_path / "new" / "t.safetensors"
    go_on(data, tmp_path / "r", teacher=new)
    assert "the same weights" in caplog.text
    go_on(data, tmp_path / "r", teacher=load_teacher(new, grid=(6, 6)), steps=5)  # from Python
    other = _teacher_file(tmp_path / "other.safetensors", seed=1)
    with pytest.raises(ValueError, match="teacher: .*its weights differ.*--teacher-moved"):
        go_on(data, tmp_path / "r", teacher=other, steps=6)
    go_on(data, tmp_path / "r", teacher=other, teacher_moved=True, steps=6)
    assert "as asked" in caplog.text and "computes otherwise" not in caplog.text


def test_other_weights_under_the_name_of_the_teacher_are_noticed(tmp_path, caplog):
    data, teacher = str(pictures(tmp_path / "data")), tmp_path / "t.safetensors"
    train(data, tmp_path / "r", teacher=_teacher_file(teacher))
    go_on(data, tmp_path / "r", teacher=teacher)
    assert "computes otherwise" not in caplog.text
    go_on(data, tmp_path / "r", teacher=_teacher_file(teacher, seed=1), steps=5)
    assert "computes otherwise" in caplog.text


def test_a_teacher_that_moved_since_a_run_of_an_earlier_version(tmp_path):
    data = str(pictures(tmp_path / "data"))
    train(data, tmp_path / "r", teacher=_teacher_file(tmp_path / "a.safetensors"))
    edit_state(tmp_path / "r", lambda state: state.pop("teacher"), None)
    new = shutil.move(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="nothing tells whether.*--teacher-moved"):
        go_on(data, tmp_path / "r", teacher=new)
    go_on(data, tmp_path / "r", teacher=new, teacher_moved=True)


@pytest.mark.parametrize("kind", ["folder", "shards", "list"])
def test_other_files_under_the_same_count_are_noticed(tmp_path, kind):
    folder = pictures(tmp_path / "data")
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

    train(data(False), tmp_path / "r")
    with pytest.raises(ValueError, match="as many, but under other names or in another order"):
        go_on(data(True), tmp_path / "r")


def test_other_shards_of_a_stream_are_noticed(tmp_path):
    for name in "ab":
        write_shard(tmp_path / f"{name}.tar", range(12))
    train(f"file://{tmp_path}/a.tar", tmp_path / "r")
    go_on(f"file://{tmp_path}/a.tar", tmp_path / "r")
    with pytest.raises(ValueError, match="hold other images.*--data-moved"):
        go_on(f"file://{tmp_path}/b.tar", tmp_path / "r", steps=5)
    (tmp_path / "c").mkdir()
    shutil.move(tmp_path / "a.tar", tmp_path / "c/a.tar")
    with pytest.raises(ValueError, match="of streams are not compared.*--data-moved"):
        go_on(f"file://{tmp_path}/c/a.tar", tmp_path / "r", steps=5)
    go_on(f"file://{tmp_path}/c/a.tar", tmp_path / "r", steps=5, data_moved=True)
