"""A run goes on after what people do between its parts: tidy up, write a path otherwise."""

import json
import os
import shutil

import pytest

import eva_fast
from eva_fast.train import checkpoint
from tests.recipes.going_on import edit_state, go_on, pictures, train, weights_of

pytestmark = pytest.mark.usefixtures("own_run_cache", "small_pictures")


@pytest.mark.parametrize("out", ["run", "runs/a/b", "."])
def test_outputs_inside_the_data(tmp_path, monkeypatch, out):
    """`cd photos; pretrain --data . --out run`, which leaves pictures there."""
    monkeypatch.chdir(pictures(tmp_path / "photos"))
    train(".", out, picture_every=1)
    assert len(list((tmp_path / "photos" / out / "pictures").iterdir())) == 2
    go_on(".", out)
    assert len(eva_fast.data.open_source(".")) == 12
    train(".", "another run")  # the first one's pictures are no data of this
    go_on(".", "another run")


def test_drawing_into_the_data_is_refused(tmp_path):
    pictures(tmp_path / "pictures")
    with pytest.raises(ValueError, match="would draw into its data"):
        train(str(tmp_path / "pictures"), tmp_path)


def _damage(folder):
    for name in ("p00.png", "p05.png", "p11.png"):
        (folder / name).write_bytes(b"no picture")


@pytest.mark.parametrize("kind", ["folder", "list", "mix", "paths"])
def test_bad_files_are_deleted_between(tmp_path, kind):
    """Numbers stay what they were: the run ends with the weights of one that nobody tidied up."""
    folder = pictures(tmp_path / "data")
    _damage(folder)
    other = pictures(tmp_path / "other", 5, seed=1)

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
        train(data(), tmp_path / out, **options)
    lines = (tmp_path / "tidied/bad_images.jsonl").read_text().splitlines()
    bad = [json.loads(line)["name"] for line in lines]
    assert len(bad) == 3
    go_on(data(), tmp_path / "left", **options)
    for name in bad:
        os.unlink(name)
    go_on(data(), tmp_path / "tidied", **options)
    assert weights_of(tmp_path / "tidied") == weights_of(tmp_path / "left")
    if kind == "folder":  # and once more
        go_on(data(), tmp_path / "tidied", steps=5, **options)


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
    _damage(pictures(old / "data"))
    pictures(old / "other", 5, seed=1)
    for out in ("moved", "left"):
        train(data(old), tmp_path / out, **options)
    shutil.copytree(old, tmp_path / "elsewhere/new")
    go_on(data(old), tmp_path / "left", **options)
    shutil.rmtree(old)
    if not kept:
        for name in ("p00.png", "p05.png", "p11.png"):
            (tmp_path / "elsewhere/new/data" / name).unlink()
    go_on(data(tmp_path / "elsewhere/new"), tmp_path / "moved", **options)
    assert weights_of(tmp_path / "moved") == weights_of(tmp_path / "left")


@pytest.mark.parametrize("kind", ["list", "paths"])
def test_bad_files_are_taken_out_of_a_list(tmp_path, kind):
    folder = pictures(tmp_path / "data")
    _damage(folder)
    options = dict(max_bad_share=0.9, batch_size=12)

    def data(*without):
        paths = [path for path in sorted(folder.glob("*.png")) if path.name not in without]
        (tmp_path / "list.txt").write_text("".join(f"./data/{path.name}\n" for path in paths))
        return str(tmp_path / "list.txt") if kind == "list" else list(map(str, paths))

    for out in ("tidied", "left"):
        train(data(), tmp_path / out, **options)
    go_on(data(), tmp_path / "left", **options)
    go_on(data("p00.png", "p05.png", "p11.png"), tmp_path / "tidied", **options)
    assert weights_of(tmp_path / "tidied") == weights_of(tmp_path / "left")
    with pytest.raises(ValueError, match="the data holds 8 now"):
        go_on(
            data("p00.png", "p05.png", "p11.png", "p03.png"),
            tmp_path / "tidied",
            steps=5,
            **options,
        )


def test_other_bytes_under_the_same_names_are_told(tmp_path, caplog):
    data = str(pictures(tmp_path / "data"))
    train(data, tmp_path / "r")
    go_on(data, tmp_path / "r", steps=3)
    assert "other bytes" not in caplog.text
    pictures(tmp_path / "data", seed=1)
    go_on(data, tmp_path / "r")
    assert "other bytes than when" in caplog.text


def test_other_files_deleted_are_noticed(tmp_path):
    folder = pictures(tmp_path / "data")
    _damage(folder)
    train(str(folder), tmp_path / "r", max_bad_share=0.9, batch_size=12)
    for name in ("p00.png", "p07.png"):  # one bad, one good
        (folder / name).unlink()
    options = dict(max_bad_share=0.9, batch_size=12)
    with pytest.raises(ValueError, match="started with 12 images, and the data holds 10 now"):
        go_on(str(folder), tmp_path / "r", **options)
    (folder / "p07.png").touch()
    go_on(str(folder), tmp_path / "r", **options)


@pytest.mark.parametrize("how", ["emptied", "mended"])
def test_bad_files_that_stay_under_their_names(tmp_path, how):
    folder = pictures(tmp_path / "data")
    whole = (folder / "p05.png").read_bytes()
    _damage(folder)
    train(str(folder), tmp_path / "r", max_bad_share=0.9, batch_size=12)
    (folder / "p05.png").write_bytes(b"" if how == "emptied" else whole)
    go_on(str(folder), tmp_path / "r", max_bad_share=0.9, batch_size=12)


def test_new_files_are_noticed(tmp_path):
    folder = pictures(tmp_path / "data")
    train(str(folder), tmp_path / "r")
    shutil.copy(folder / "p00.png", folder / "new.png")
    with pytest.raises(ValueError, match="13 now: put the new ones elsewhere"):
        go_on(str(folder), tmp_path / "r")


@pytest.mark.parametrize("first, again", [("data", "data/"), ("data", "{}"), ("{}/", "./data")])
def test_a_path_written_otherwise(tmp_path, monkeypatch, first, again):
    """Trailing slashes, relative and absolute."""
    folder = pictures(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    train(first.format(folder), tmp_path / "r")
    go_on(again.format(folder), tmp_path / "r")


def test_a_checkpoint_without_names_goes_on(tmp_path):
    folder = pictures(tmp_path / "data")
    train(str(folder), tmp_path / "r")
    edit_state(tmp_path / "r", lambda loader: (loader.pop("contents"), loader["feed"].pop("names")))
    go_on(str(folder), tmp_path / "r")
    state = checkpoint.read_state(checkpoint.newest(tmp_path / "r/checkpoints"))
    assert len(state["loader"]["feed"]["names"]) == 1 and len(state["loader"]["contents"]) == 12


def test_the_record_keeps_when_it_began_and_the_timings_of_its_kernels(tmp_path):
    data, out = pictures(tmp_path / "pictures"), tmp_path / "run"

    def environment():
        return json.loads((out / "environment.json").read_text())

    train(data, out, kernels="auto")
    begun = environment()
    kernels = begun["kernels"]
    assert kernels["bias_gelu"]["implementation"] in kernels["bias_gelu"]["milliseconds"] or (
        kernels["bias_gelu"]["why"] == "alone"
    )
    go_on(data, out, kernels="auto")
    gone_on = environment()
    assert [start["step"] for start in gone_on["starts"]] == [0, 2]
    assert gone_on["starts"][0] == begun["starts"][0]
    again = gone_on["kernels"]
    assert {op: again[op]["milliseconds"] for op in again} == {
        op: kernels[op]["milliseconds"] for op in again
    }
    assert {entry["why"] for entry in again.values()} <= {"resumed", "measured"}
    (out / "environment.json").write_text("[")
    go_on(data, out, kernels="torch", steps=6)
    assert environment()["kernels"] == {} and len(environment()["starts"]) == 1
