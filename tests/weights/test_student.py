"""Weight files: official naming, sizes, and that timm reads what we write."""

import argparse
import datetime
import logging
import re

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from timm.models.eva import checkpoint_filter_fn

from eva_fast.errors import UsageError
from eva_fast.model import create_model
from eva_fast.weights import infer_sizes, initialise, naming, read_student, write, write_student
from eva_fast.weights.student import SIZE_NAMES
from tests.weights.networks import STUDENT, TIMM_STUDENT, images, random_, student


@pytest.mark.parametrize(
    "sizes",
    [{}, dict(embed_dim=176, num_heads=2, mlp_hidden=279), dict(patch_size=16, depth=1)],
    ids=["small", "head 88, hidden 279", "one block"],
)
def test_timm_loads_the_file_and_gives_the_same_features(tmp_path, sizes):
    ours = student(**sizes).double()
    write_student(ours, tmp_path / "model.safetensors")
    s = ours.sizes
    theirs = timm.create_model(
        "eva_giant_patch14_224",
        img_size=s.img_size,
        patch_size=s.patch_size,
        embed_dim=s.embed_dim,
        depth=s.depth,
        num_heads=s.num_heads,
        mlp_ratio=s.mlp_hidden / s.embed_dim,
        num_classes=0,
        pretrained=True,
        pretrained_cfg_overlay=dict(file=str(tmp_path / "model.safetensors")),
    )
    theirs = theirs.double().eval()
    images = torch.randn(2, 3, s.img_size, s.img_size, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs.fc_norm(theirs.forward_features(images))
        got = ours.forward_features(images)
    # The file is float32: timm's copy differs from ours by the rounding of its weights.
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    ours.load_official(read_student(tmp_path / "model.safetensors")[0])
    with torch.no_grad():
        torch.testing.assert_close(ours.forward_features(images), expected, atol=1e-12, rtol=1e-12)


def test_timm_needs_nothing_that_the_file_lacks(tmp_path):
    write_student(student(), tmp_path / "m.safetensors")
    model = timm.create_model(
        "eva_giant_patch14_224", img_size=48, patch_size=12, embed_dim=64, depth=3, num_heads=4,
        mlp_ratio=144 / 64, num_classes=0,
    )  # fmt: skip
    state = checkpoint_filter_fn(read_student(tmp_path / "m.safetensors")[0], model)
    assert model.load_state_dict(state, strict=True)


def test_what_is_written_is_read_back(tmp_path):
    model = student()
    write_student(model, tmp_path / "deep" / "model.safetensors")
    state, metadata = read_student(tmp_path / "deep" / "model.safetensors")
    assert {k: int(v) for k, v in metadata.items()} == STUDENT and set(metadata) == set(SIZE_NAMES)
    own = model.state_dict()
    assert state.keys() == own.keys()
    assert all(torch.equal(state[k], own[k]) for k in own)
    assert [f.name for f in (tmp_path / "deep").iterdir()] == ["model.safetensors"]
    assert (tmp_path / "deep" / "model.safetensors").stat().st_mode & 0o400


def test_other_values_can_be_written(tmp_path):
    model = student()
    write_student(model, tmp_path / "m.safetensors", {"norm.weight": torch.full((64,), 3.0)})
    state, _ = read_student(tmp_path / "m.safetensors")
    assert (state["norm.weight"] == 3).all()
    assert torch.equal(state["norm.bias"], model.norm.bias)
    with pytest.raises(ValueError, match=r"norm\.scale"):
        write_student(model, tmp_path / "m.safetensors", {"norm.scale": torch.ones(64)})


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    write_student(student(), path)
    before = path.read_bytes()

    def fail(tensors, name, metadata):
        name.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("eva_fast.weights.writer.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        write_student(student(), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_sizes_are_read_off_the_shapes(tmp_path, eva_micro):
    tensors, meta = eva_micro
    state = {k.removeprefix("param."): v for k, v in tensors.items() if k.startswith("param.")}
    sizes = infer_sizes(state, meta)
    assert all(getattr(sizes, name) == int(meta[name]) for name in SIZE_NAMES)
    assert infer_sizes(state).num_heads == 1  # 64 wide: one head of 64 unless told otherwise
    for width, heads in ((1408, 16), (384, 6)):
        with torch.device("meta"):
            model = create_model(
                img_size=28, patch_size=14, embed_dim=width, depth=2, num_heads=heads,
                mlp_hidden=32, predict_dim=8,
            )  # fmt: skip
        assert infer_sizes(model.state_dict()) == model.sizes
    with pytest.raises(ValueError, match="heads cannot be told"):
        infer_sizes(student(embed_dim=100).state_dict())
    with pytest.raises(ValueError, match="square grid"):
        infer_sizes({**state, "pos_embed": torch.zeros(1, 8, 64)})
    with pytest.raises(ValueError, match="fc1"):
        infer_sizes({k: v for k, v in state.items() if "fc1" not in k})


def test_official_and_timm_checkpoints_are_understood(tmp_path):
    model = student()
    state = model.state_dict()
    torch.save({"module": state, "epoch": 3}, tmp_path / "official.pt")
    loaded, metadata = read_student(tmp_path / "official.pt")
    assert metadata == {} and all(torch.equal(loaded[k], state[k]) for k in state)

    tuned = timm.create_model(
        "eva_giant_patch14_224", img_size=48, patch_size=12, embed_dim=64, depth=3, num_heads=4,
        mlp_ratio=144 / 64, num_classes=5,
    )  # fmt: skip
    save_file(tuned.state_dict(), tmp_path / "timm.safetensors")
    loaded, _ = read_student(tmp_path / "timm.safetensors")
    assert not any(k.startswith(("head.", "fc_norm")) for k in loaded)
    assert infer_sizes(loaded, {"num_heads": "4"}).predict_dim == 1
    assert torch.equal(loaded["norm.weight"], tuned.state_dict()["fc_norm.weight"])


def test_what_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors"):
        read_student(tmp_path / "nowhere.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not a file")
    with pytest.raises(ValueError, match="not a readable weight file"):
        read_student(tmp_path / "broken.safetensors")
    (tmp_path / "broken.pt").write_bytes(b"not a file")
    with pytest.raises(ValueError, match="not a readable weight file"):
        read_student(tmp_path / "broken.pt")
    torch.save({"run": print}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match="not a readable weight file"):
        read_student(tmp_path / "code.pt")
    save_file({"conv.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="does not hold an EVA-01 ViT"):
        read_student(tmp_path / "other.safetensors")


def test_the_file_is_float32_whatever_the_model_is(tmp_path):
    write_student(student().to(torch.bfloat16), tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert all(file.get_tensor(k).dtype == torch.float32 for k in file.keys())  # noqa: SIM118


# Starting a student from a file -------------------------------------------------------------------


def test_the_same_sizes_are_taken_over_exactly(tmp_path, caplog):
    write_student(student(), tmp_path / "m.safetensors")
    model = random_(create_model(**STUDENT))
    with caplog.at_level(logging.INFO, "eva_fast"):
        initialise(model, tmp_path / "m.safetensors")
    assert all(torch.equal(v, student().state_dict()[k]) for k, v in model.state_dict().items())
    assert not caplog.text


@pytest.mark.parametrize("source", ["timm", "without a head", "another teacher"])
def test_what_pre_training_alone_needs_may_be_missing(tmp_path, caplog, source):
    """It keeps the new model's own start, and a warning says so."""
    given = student(predict_dim=7 if source == "another teacher" else 20)
    state = given.state_dict()
    if source == "timm":
        state = naming.timm.EVA_POOLED.write(state)
    elif source == "without a head":
        state = {k: v for k, v in state.items() if not k.startswith("lm_head")}
    write(tmp_path / "m.safetensors", state)
    model = create_model(**STUDENT)
    head = model.lm_head.weight.clone()
    with caplog.at_level(logging.WARNING, "eva_fast"):
        initialise(model, tmp_path / "m.safetensors")
    assert "lm_head.weight, lm_head.bias for this student: they start anew" in caplog.text
    assert torch.equal(model.lm_head.weight, head)
    assert torch.equal(model.norm.weight, given.norm.weight)
    assert torch.equal(model.mask_token, given.mask_token) == (source != "timm")


def test_another_image_size(tmp_path):
    """As timm resizes positions when it loads a file into a model of another image size."""
    write_student(student(), tmp_path / "m.safetensors")
    model = create_model(**{**STUDENT, "img_size": 72})
    initialise(model, tmp_path / "m.safetensors")
    theirs = timm_model(tmp_path / "m.safetensors", img_size=72)
    with torch.no_grad():
        expected = theirs.fc_norm(theirs.forward_features(images(72)))
        torch.testing.assert_close(
            model.forward_features(images(72)), expected, atol=1e-5, rtol=1e-5
        )


def test_another_patch_size(tmp_path):
    """Patches of 12 become patches of 16: as timm resizes the convolution's kernels."""
    write_student(student(), tmp_path / "m.safetensors")
    model = create_model(**{**STUDENT, "img_size": 64, "patch_size": 16})
    initialise(model, tmp_path / "m.safetensors")
    theirs = timm_model(tmp_path / "m.safetensors", img_size=64, patch_size=16)
    with torch.no_grad():
        expected = theirs.fc_norm(theirs.forward_features(images(64)))
        torch.testing.assert_close(
            model.forward_features(images(64)), expected, atol=3e-5, rtol=1e-4
        )


def timm_model(path, **sizes):
    return timm.create_model(
        "eva_giant_patch14_224", **{**TIMM_STUDENT, **sizes}, num_classes=0, pretrained=True,
        pretrained_cfg_overlay=dict(file=str(path)),
    ).eval()  # fmt: skip


def test_a_checkpoint_with_objects_of_a_script(tmp_path, monkeypatch):
    """The refusal names the type and gives the lines that convert the file."""
    args = argparse.Namespace(lr=1e-3, started=datetime.date(2024, 1, 1))
    given, path = student(), tmp_path / "checkpoint-9.pth"
    torch.save({"model": given.state_dict(), "args": args, "epoch": 9}, path)
    model = create_model(**STUDENT)
    with pytest.raises(UsageError, match=r"besides tensors \(datetime\.date\)") as refused:
        initialise(model, path)
    lines = re.search(r"(state = .*), or whatever", str(refused.value))[1]
    monkeypatch.chdir(tmp_path)
    exec(lines, {"torch": torch})
    initialise(model, "converted.pt")
    assert all(torch.equal(v, given.state_dict()[k]) for k, v in model.state_dict().items())


def test_a_checkpoint_with_its_command_line(tmp_path):
    """`args`, as official scripts save it, is plain data and no hindrance."""
    given, path = student(), tmp_path / "checkpoint-9.pth"
    args = argparse.Namespace(lr=1e-3, output_dir=tmp_path)
    torch.save({"model": given.state_dict(), "args": args, "optimizer": {"state": {}}}, path)
    model = create_model(**STUDENT)
    initialise(model, path)
    assert all(torch.equal(v, given.state_dict()[k]) for k, v in model.state_dict().items())


def test_another_architecture_is_refused(tmp_path):
    write_student(student(), tmp_path / "m.safetensors")
    for sizes, message in (
        (dict(embed_dim=128), "shape: blocks"),
        (dict(depth=4), r"missing: blocks\.3"),
        (dict(depth=2), r"unknown: blocks\.2"),
    ):
        with pytest.raises(UsageError, match=message):
            initialise(create_model(**{**STUDENT, **sizes}), tmp_path / "m.safetensors")


def test_a_metadata_entry_that_is_no_json(tmp_path):
    write(tmp_path / "m.safetensors", student().state_dict(), {"sizes": "{"})
    with pytest.raises(UsageError, match="no JSON"):
        read_student(tmp_path / "m.safetensors")


def test_equal_weights_are_equal_files(tmp_path):
    for name in ("a", "b"):
        write_student(student(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
