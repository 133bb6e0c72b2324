"""Probes while training: scores of the student as it is, and not a number of the run moved by them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import eva_fast
from eva_fast.errors import UsageError

OPTIONS = dict(
    teacher="hog", depth=1, embed_dim=32, num_heads=2, mlp_hidden=48, batch_size=4, steps=6,
    workers=0, log_every=2, device="cpu", kernels="torch",
)  # fmt: skip


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Four colours, a folder a class, eight images each."""
    folder = tmp_path_factory.mktemp("labelled")
    for number, colour in enumerate(("red", "lime", "blue", "white")):
        (folder / colour).mkdir()
        for image in range(8):
            tone = Image.new("RGB", (40, 40), colour).point(lambda v, i=image: v * (20 + i) // 28)
            tone.save(folder / colour / f"{number}{image}.png")
    return folder


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "probes.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def probed(labelled, tmp_path_factory):
    out = tmp_path_factory.mktemp("probed")
    return eva_fast.pretrain(
        out=out, probe_data=labelled, probe_every=2, probe_with="knn, linear,", **OPTIONS
    )


def test_lines_and_figure(probed, labelled):
    found = lines(probed.out)
    assert [line["step"] for line in found] == [2, 4, 6]
    assert all(0 <= line[p] <= 100 for line in found for p in ("knn", "linear"))
    assert (probed.out / "probes.png").read_bytes()[:4] == b"\x89PNG"
    last = eva_fast.evaluate(probed.out, labelled, teacher="none").student.to_dict()
    assert (found[-1]["knn"], found[-1]["linear"]) == (last["knn"], last["linear"])


def test_the_run_is_the_same_with_and_without(probed, tmp_path):
    plain = eva_fast.pretrain(out=tmp_path, **OPTIONS)
    a, b = load_file(plain.weights), load_file(probed.weights)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert plain.metrics["loss"] == probed.metrics["loss"]


def test_a_run_that_goes_on_probes_again_what_it_takes_again(probed, labelled, tmp_path):
    class Enough(eva_fast.Callback):
        def on_step(self, training):
            if training.step == 3:
                training.stop()

    options = dict(out=tmp_path, probe_data=str(labelled), probe_every=2, **OPTIONS)
    eva_fast.pretrain(callbacks=[Enough()], **options)
    with (tmp_path / "probes.jsonl").open("a") as file:
        file.write(json.dumps({"step": 5, "knn": 1.0, "knn_error": 1.0}) + "\n")
    eva_fast.pretrain(resume="auto", **options)
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [2, 4, 6]
    assert [line["knn"] for line in found] == [line["knn"] for line in lines(probed.out)]


def test_images_that_go_away_end_no_run(probed, labelled, tmp_path, caplog):
    """Away for two probes, back for the last."""
    there, away = tmp_path / "there", tmp_path / "away"
    shutil.copytree(labelled, there)

    class Move(eva_fast.Callback):
        def on_log(self, training, metrics):
            if training.step == 2:
                there.rename(away)
            if training.step == 4:
                away.rename(there)

    result = eva_fast.pretrain(
        out=tmp_path / "run", callbacks=[Move()], probe_data=there, probe_every=1,
        probe_with=["linear", "knn"], **OPTIONS,
    )  # fmt: skip
    found = lines(result.out)
    assert [line["step"] for line in found] == [1, 2, 3, 4, 5, 6] and list(result.probes) == found
    assert ["error" in line for line in found] == [False, False, True, True, False, False]
    assert found[-1]["knn"] == lines(probed.out)[-1]["knn"] and "linear" in found[0]
    told = [r.getMessage() for r in caplog.records if "probe at step 3 failed" in r.getMessage()]
    assert len(told) == 1 and "none of the 32 images could be read" in told[0]
    assert "probe at step 4 failed" not in caplog.text and "2 of 6 failed" in str(result)
    assert (result.out / "probes.png").is_file()


def test_what_cannot_be_probed_is_told_before_training(tmp_path):
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "flat" / "a.png")
    for number, name in enumerate(("cats", "cats", "dogs", "dogs")):
        folder = tmp_path / "empty" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(b"no picture")
    for wrong, message in (
        (dict(probe_every=2), "probe_every needs probe_data"),
        (dict(probe_with="knn,svm"), "probe_with is of knn, linear with commas, got 'knn,svm'"),
        (dict(probe_with=" ,"), "probe_with is of knn, linear with commas, got ' ,'"),
        (dict(probe_with=[3]), "probe_with must be names"),
        (dict(probe_data=tmp_path / "nowhere"), "nowhere"),
        (dict(probe_data=tmp_path / "flat"), "class"),
        (dict(probe_data=tmp_path / "empty"), "of the first 4 images none can be read: .*png: "),
    ):
        with pytest.raises((UsageError, FileNotFoundError), match=message):
            eva_fast.pretrain(out=tmp_path / "run", **wrong, **OPTIONS)
    assert not (tmp_path / "run").exists()
