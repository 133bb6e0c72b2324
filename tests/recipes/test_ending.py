"""The last words of a run: its commands are real ones."""

import logging
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import eva_fast
from eva_fast import cli
from eva_fast.config import Config
from eva_fast.recipes.ending import ending, next_commands
from eva_fast.recipes.pretrain import run

TINY = dict(
    model="eva_ti_patch8_32", embed_dim=32, depth=1, num_heads=2, mlp_hidden=48, batch_size=4,
    steps=2, workers=0, device="cpu", kernels="torch", progress=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("a place with spaces") / "run"
    config = Config.from_options({**TINY, "out": out})
    return config, run(config)


def test_each_command_is_taken_by_the_command_line(finished, monkeypatch):
    """Nothing is run: what the commands would be called with."""
    seen = []
    monkeypatch.setattr("eva_fast.recipes.pretrain.run", lambda c: seen.append(c) or finished[1])
    monkeypatch.setattr(
        "eva_fast.evaluation.evaluator.evaluate", lambda run, *_, **__: seen.append(run)
    )
    monkeypatch.setattr("eva_fast.evaluation.table.render", lambda found: "")
    commands = next_commands(*finished)
    assert len(commands) == 3
    for command in commands.values():
        words = shlex.split(command)
        assert words[0] == "eva-fast"
        cli.main(words[1:])
    judged, images, teacher = seen
    assert judged == str(finished[1].out)
    assert images.data.data == "FOLDER" and teacher.teacher.teacher == "ViT-L-14.pt"
    assert images.run.out != teacher.run.out
    assert images.run.out.parent == teacher.run.out.parent == finished[1].out.parent


def test_the_evaluation_runs_as_it_is_printed(finished, capsys):
    (command,) = (c for c in next_commands(*finished).values() if " eval " in c)
    cli.main([*shlex.split(command)[1:], "--probe", "knn", "--teacher", "none"])
    assert "random init" in capsys.readouterr().out
    assert (finished[1].out / "eval.json").is_file()


def test_another_objective_stays_and_needs_no_teacher_where_it_has_none(finished):
    result = finished[1]
    for name, commands in (("mae", 3), ("pixels", 2)):
        config = Config.from_options({**TINY, "objective": name})
        found = list(next_commands(config, result).values())
        assert len(found) == commands
        assert all(f"--objective {name}" in c for c in found if " pretrain " in c)


def test_images_of_other_channels_stay_what_they_are(finished, monkeypatch):
    """Also where their numbers are below 0: the command is read back."""
    seen = []
    monkeypatch.setattr("eva_fast.recipes.pretrain.run", lambda c: seen.append(c) or finished[1])
    said = dict(
        channels=5, mean=(0.5, 0.5, 0.1, 0.25, -0.5), std=(0.1,) * 5, teacher_channels=(4, 2, 0)
    )
    config = Config.from_options({**TINY, **said, "data": "/my/scenes", "teacher": "hog"})
    evaluated, taught = next_commands(config, finished[1]).values()
    assert evaluated.endswith("--data FOLDER")
    cli.main(shlex.split(taught)[1:])
    (read,) = seen
    assert read.data.statistics == config.data.statistics and read.data.channels == 5
    assert read.teacher.teacher_channels == (4, 2, 0)


def test_a_run_on_ones_own_images_and_teacher_is_not_told_to_use_them(finished):
    result = finished[1]
    own = Config.from_options({**TINY, "data": "/my/images", "teacher": "/my/clip.pt"})
    assert list(next_commands(own, result).values()) == [
        shlex.join(["eva-fast", "eval", str(result.out)])
    ]


def test_its_page_is_made_as_it_is_printed(finished):
    pytest.importorskip("bokeh", reason="pip install 'eva-fast[report]'")
    cli.main(shlex.split(ending(*finished)[-1])[1:])
    assert (finished[1].out / "report.html").is_file()


def test_a_stopped_run_says_how_it_goes_on(finished, monkeypatch):
    import dataclasses

    config, result = finished
    stopped = dataclasses.replace(result, stopped_by="SIGTERM")
    lines = ending(config, stopped)
    assert lines[0] == "stopped by SIGTERM after 2 of 2 steps" and "next:" not in lines
    seen = []
    monkeypatch.setattr("eva_fast.recipes.pretrain.run", lambda c: seen.append(c) or result)
    cli.main(shlex.split(lines[-1])[1:])
    assert seen[0].run.resume == "auto" and seen[0].run.out == result.out
    assert seen[0].model.embed_dim == 32


def test_python_hears_the_same_in_its_log_and_what_was_waited_for(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "eva_fast"):
        result = eva_fast.pretrain(out=tmp_path / "run", **{**TINY, "kernels": "auto"})
    said = [record.getMessage() for record in caplog.records]
    assert said[-1].startswith("loss ") and f"eva-fast eval {result.out}" in said[-1]
    order = ["mean and deviation of the teacher's features on 512 images", "first step after"]
    places = [next(i for i, line in enumerate(said) if part in line) for part in order]
    assert places == sorted(places)
    assert all(part in said[places[1]] for part in ("imports ", "kernels ", "calibration "))
    kernels = [line for line in said if "gemm" in line]
    assert len(kernels) <= 1  # each measurement is told once


@pytest.mark.parametrize("out", [".", "..", "/"])
def test_a_run_in_the_folder_at_hand(finished, monkeypatch, tmp_path, out):
    monkeypatch.chdir(tmp_path)
    result = replace(finished[1], out=Path(out))
    for command in next_commands(finished[0], result).values():
        folder = shlex.split(command)[-1]
        assert folder == out or Path(folder).name not in ("", ".", "..")


@pytest.mark.parametrize("data", [["a.jpg", "b.jpg"], np.array(["a.jpg", "b.jpg"]), [("a", 0.5)]])
def test_data_that_no_shell_can_give(finished, data):
    config = Config.from_options({**TINY, "teacher": "hog", "data": data})
    (command,) = (c for c in next_commands(config, finished[1]).values() if "--teacher" in c)
    assert shlex.split(command)[2:4] == ["--data", "FOLDER"]


FOREIGN = {
    "timm": dict(model="timm/vit_tiny_patch16_224", img_size=32, patch_size=8, depth=1),
    "fd": dict(model="timm/test_resnet", img_size=64, objective="fd"),
    "ours": dict(model="eva_ti_patch8_32", objective="mae", embed_dim=32, depth=1, num_heads=2),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_the_next_commands_run_as_they_are_printed(name, tmp_path, capsys, monkeypatch):
    """With the student's own sizes; what is added makes them short."""
    pytest.importorskip("timm")
    short = ["--batch-size", "4", "--steps", "1", "--workers", "0", "--device", "cpu"]
    short += ["--kernels", "torch", "--no-progress"]
    options = {**FOREIGN[name], "teacher": "hog", "batch_size": 4, "steps": 1, "workers": 0}
    config = Config.from_options(
        {**options, "device": "cpu", "kernels": "torch", "progress": False, "out": tmp_path / "run"}
    )
    result = run(config)
    commands = next_commands(config, result)
    seen = []
    monkeypatch.setattr(
        "eva_fast.recipes.pretrain.run", lambda given: seen.append(run(given)) or seen[-1]
    )
    for what, command in commands.items():
        words = shlex.split(command)[1:]
        if words[0] == "eval":
            cli.main([*words, "--probe", "knn"])
        elif "your own images" in what:
            photos = tmp_path / "photos"
            pictures(photos)
            cli.main([w.replace("FOLDER", str(photos)) for w in words] + short)
    (again,) = seen
    assert again.model.sizes == result.model.sizes


def pictures(folder):
    folder.mkdir()
    for number in range(8):
        Image.new("RGB", (70, 70), (30 * number, 90, 200)).save(folder / f"{number}.png")


def test_a_stopped_run_of_objects_says_how_it_goes_on(finished):
    class Images:
        def __len__(self):
            return 8

    result = replace(finished[1], stopped_by="SIGTERM", step=1)
    for data, said in (
        (Images(), 'go on with the same call and resume="auto"'),
        (["a", ("b", 0.5)], "--resume auto"),
        ("pipe:cat x.tar", "--resume auto --data 'pipe:cat x.tar'"),
    ):
        config = Config.from_options({**TINY, "data": data})
        assert ending(config, result)[-1].endswith(said)
