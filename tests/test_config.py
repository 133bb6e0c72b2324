"""Options: defaults are EVA-01's, wrong ones are refused with one clear message."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from eva_fast.config import MAY_CHANGE, Config, OptimConfig, RunConfig


def test_defaults_are_eva01s():
    optim, data = OptimConfig(), Config().data
    assert (optim.lr, optim.min_lr, optim.warmup_epochs) == (1e-3, 1e-5, 2)
    assert (optim.betas, optim.eps, optim.weight_decay) == ((0.9, 0.98), 1e-6, 0.05)
    assert optim.clip_grad == 3.0
    assert (data.crop_scale, data.crop_ratio, data.flip) == ((0.2, 1.0), (3 / 4, 4 / 3), 0.5)
    assert Config().model.drop_path == 0.1


def test_every_option_has_one_home_and_help():
    names = [o.name for g in dataclasses.fields(Config) for o in dataclasses.fields(g.type)]
    assert len(names) == len(set(names))
    assert list(Config().options()) == names


def test_what_a_resumed_run_may_change():
    """Length, schedule, where and how fast it runs; never what is learned from what."""
    length = {"steps", "epochs", "accumulate"}
    schedule = {"lr", "min_lr", "warmup_lr", "betas", "eps", "weight_decay"}
    schedule |= {"warmup_epochs", "warmup_steps"}
    guards = {"clip_grad", "spike"}
    place = {"out", "resume", "init_from", "device", "kernels", "graph", "workers"}
    place |= {"max_bad_share", "max_megapixels", "data_moved", "teacher_moved"}
    record = {"log_every", "picture_every", "track", "progress"}
    record |= {"probe_data", "probe_every", "probe_with"}
    memory = {"grad_checkpointing", "grad_checkpointing_share"}
    when = {"checkpoint_every", "checkpoint_minutes", "keep_checkpoints", "keep_checkpoint_every"}
    processes = {"sharding", "teacher_sharding", "process_minutes", "rewinds"}
    assert length | schedule | guards | place | record | memory | when | processes == MAY_CHANGE


def test_a_run_that_goes_on_stays_the_same_run():
    before = Config.from_options({"mask_count": 9, "lr": 1e-3}).options()
    now = Config.from_options({"mask_count": 10, "lr": 1e-4})
    assert now.changed(before) == {"mask_count": (9, 10)}
    del before["mask_count"]  # written by a version that had no such option
    assert now.changed(before) == {}


def test_options_are_read_without_torch():
    """`eva-fast --help` and a wrong option cost no seconds."""
    code = "import sys, eva_fast.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_first_run_has_a_student_of_its_own():
    """Only where nobody says a word about data, teacher, objective and student."""
    first = Config.from_options({"steps": 3, "drop_path": 0.0}).settled()
    assert (first.model.depth, first.model.patch_size, first.teacher.whiten) == (6, 12, True)
    assert first.settled() == first
    for said in (
        {"data": "photos"}, {"teacher": "hog"}, {"depth": 12}, {"model": "eva_s_patch16_96"},
        {"objective": "mine"},
    ):  # fmt: skip
        model = Config.from_options(said).settled().model
        assert model == Config.from_options(said).model


def test_the_teacher_in_the_package_is_whitened_unless_said_otherwise():
    for said, expected in (
        ({}, True), ({"whiten": False}, False), ({"data": "photos"}, True),
        ({"teacher": "hog"}, False), ({"teacher": "hog", "whiten": True}, True),
    ):  # fmt: skip
        assert Config.from_options(said).settled().teacher.whiten is expected


def test_yaml_round_trip(tmp_path):
    config = Config.from_options(
        {"lr": 2e-3, "out": "a/b", "betas": [0.9, 0.95], "steps": 7, "precision": "bf16"}
    )
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.options()))
    assert Config.from_yaml(path) == config
    assert Config.from_yaml(path, steps=9).optim.steps == 9


@pytest.mark.parametrize(
    "data", ["pipe:cat a.tar", ["b", ["pipe:cat a.tar", 0.5]], "b:0.5,pipe:cat a.tar:0.5"]
)
def test_a_file_has_no_command_run(tmp_path, data):
    path = tmp_path / "config.yaml"
    for name in ("data", "probe_data"):
        path.write_text(yaml.safe_dump({name: data}))
        with pytest.raises(ValueError, match=f"{name} (is a command|must be)"):
            Config.from_yaml(path)
    path.write_text(yaml.safe_dump({"data": data}))
    assert Config.from_yaml(path, data="pipe:cat b.tar").data.data == "pipe:cat b.tar"


def test_numbers_that_yaml_reads_as_text(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("lr: 1e-3\n")  # YAML 1.1 wants 1.0e-3
    assert Config.from_yaml(path).optim.lr == 1e-3


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(lrr=1), "unknown option 'lrr'; did you mean 'lr'"),
        (dict(zzzz=1), "unknown option 'zzzz'; there are model"),
        (dict(lr="fast"), "lr must be of type float"),
        (dict(lr=-1.0), "lr must be 0 or more"),
        (dict(lr=float("nan")), "lr must be 0 or more"),
        (dict(batch_size=0), "batch_size must be at least 1"),
        (dict(batch_size=6, accumulate=4), "not a multiple of accumulate"),
        (dict(batch_size=6.5), "batch_size must be of type int"),
        (dict(steps=0), "steps must be at least 1"),
        (dict(epochs=0.0), "epochs must be above 0"),
        (dict(crop_scale=(0.0, 1.0)), "crop_scale must be"),
        (dict(crop_scale=0.5), "crop_scale must be of type"),
        (dict(crop_ratio=(2.0, 1.0)), "crop_ratio must be"),
        (dict(flip=2.0), "flip is a probability"),
        (dict(betas=(0.9, 1.0)), "betas must be in"),
        (dict(drop_path=1.0), "drop_path must be in"),
        (dict(workers=-1), "workers must be 0"),
        (dict(precision="fp4"), "precision must be one of auto, fp32, bf16, fp16, fp8"),
        (dict(device="tpu"), "device must be auto, cpu or cuda"),
        (dict(resume="yes", out="x"), "resume must be one of never, auto"),
        (dict(resume=True, out="x"), "resume must be one of never, auto, got True"),
        (dict(log_every=0), "log_every must be at least 1"),
        (dict(progress="yes"), "progress must be of type bool"),
        (dict(track="tensorbord"), "track is none, or of tensorboard, wandb, mlflow"),
        (dict(ema=1.0), "ema must be in"),
        (dict(max_bad_share=2.0), "max_bad_share must be in"),
        (dict(max_megapixels=0), "max_megapixels must be above 0"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        Config.from_options(options)


def test_a_broken_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nope\.yaml"):
        Config.from_yaml(tmp_path / "nope.yaml")
    path = tmp_path / "c.yaml"
    path.write_text("a: [1")
    with pytest.raises(ValueError, match="is not YAML"):
        Config.from_yaml(path)
    path.write_text("- 1\n- 2\n")
    with pytest.raises(ValueError, match="option: value"):
        Config.from_yaml(path)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    """The shell leaves it in --out=~/r, in YAML and in Python."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text("out: ~/r\ninit_from: ~/s.safetensors\nteacher: ~/t.pt\n")
    config = Config.from_yaml("~/c.yaml")
    assert config.run.out == tmp_path / "r"
    assert config.model.init_from == tmp_path / "s.safetensors"
    assert config.teacher.teacher == f"{tmp_path}/t.pt"
    named = Config.from_options({"teacher": "timm/vit:~/t.pt"}).teacher.teacher
    assert named == f"timm/vit:{tmp_path}/t.pt"
    assert RunConfig(out=Path("~/r")).out == tmp_path / "r"  # as the command line makes it
    with pytest.raises(ValueError, match="no such user"):
        Config.from_options({"out": "~nobody-of-that-name/r"})


def test_numbers_of_other_libraries():
    given = {
        "batch_size": np.int64(4),
        "lr": np.float32(0.5),
        "flip": torch.tensor(0.25),
        "betas": np.array([0.5, 0.75]),
        "whiten": np.bool_(True),
        "model": np.str_("eva_ti_patch16_96"),
        "seed": np.array(3),
    }
    config = Config.from_options(given)
    plain = {name: value for name, value in config.options().items() if name in given}
    assert plain == {
        "batch_size": 4, "lr": 0.5, "flip": 0.25, "betas": [0.5, 0.75], "whiten": True,
        "model": "eva_ti_patch16_96", "seed": 3,
    }  # fmt: skip
    assert yaml.safe_load(yaml.safe_dump(config.options())) == config.options()
    with pytest.raises(ValueError, match="batch_size must be of type int"):
        Config.from_options({"batch_size": np.float64(4.5)})
    with pytest.raises(ValueError, match="batch_size must be of type int"):
        Config.from_options({"batch_size": np.bool_(True)})


@pytest.mark.parametrize("again", ["/data/x/", "/data/./x", "/data/y/../x"])
def test_a_path_written_otherwise_is_the_same_run(again):
    before = Config.from_options({"data": "/data/x"}).options()
    assert Config.from_options({"data": again}).changed(before) == {}
    assert Config.from_options({"data": "/data/z"}).changed(before).keys() == {"data"}


def test_data_that_compares_item_by_item():
    config = Config.from_options({"data": np.array(["a.jpg", "builtin"])})
    assert config.settled().model == config.model and not config.data.is_builtin


def test_a_path_is_the_same_relative_and_absolute(tmp_path, monkeypatch):
    (tmp_path / "teachers").mkdir()
    (tmp_path / "t.pt").write_bytes(b"")
    monkeypatch.chdir(tmp_path / "teachers")
    before = Config.from_options({"teacher": "../t.pt", "data": "."}).options()
    now = Config.from_options({"teacher": f"{tmp_path}/t.pt", "data": str(tmp_path / "teachers")})
    assert now.changed(before) == {}
    assert Config.from_options({"teacher": "../u.pt", "data": "."}).changed(before).keys() == {
        "teacher"
    }


def test_hardware_is_no_device():
    with pytest.raises(ValueError, match="got 'h100'; .* `eva-fast plan --hardware`"):
        Config.from_options({"device": "h100"})


@pytest.mark.parametrize("name", ["out", "init_from"])
def test_an_empty_path_is_no_path(name):
    """`--out=$RUN` with RUN unset is not the current folder."""
    with pytest.raises(ValueError, match=f"{name} is empty"):
        Config.from_options({name: ""})
    assert Config.from_options({"out": "."}).run.out == Path(".")
