"""Runs on images with other than three channels."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import eva_fast
from eva_fast.config import Config
from eva_fast.evaluation import evaluate
from eva_fast.layers.inputs import CLIP_MEAN, CLIP_STD
from eva_fast.model import create_model
from eva_fast.objectives.picture import visible
from eva_fast.planning import plan
from eva_fast.planning.students import parameter_count
from eva_fast.recipes.export import export
from eva_fast.recipes.pretrain import run
from tests.objectives.test_vqkd import Killed

timm = pytest.importorskip("timm")
TINY = dict(
    device="cpu", workers=0, progress=False, kernels="torch", teacher="hog", batch_size=8,
    log_every=1, lr=3e-3, steps=4, checkpoint_every=2,
)  # fmt: skip
VIT = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, mlp_hidden=48)
FIVE = dict(channels=5, teacher_channels=(4, 2, 0), mean=(0.5,) * 5, std=(0.3, 0.3, 0.3, 0.3, 0.2))
SMALL = dict(decoder_dim=32, decoder_depth=1, decoder_heads=2)
RUNS = {
    "own": dict(VIT, **FIVE, model="eva_ti_patch8_32"),
    "timm": dict(VIT, **FIVE, model="timm/vit_tiny_patch16_224"),
    "fd": dict(FIVE, model="timm/test_convnext", img_size=64, objective="fd"),
    "torchvision": dict(FIVE, model="torchvision/shufflenet_v2_x0_5", img_size=64, objective="fd"),
    "mae": dict(VIT, **FIVE, model="eva_ti_patch8_32", objective="mae", **SMALL),
    "pixels": dict(VIT, **FIVE, model="eva_ti_patch8_32", objective="pixels", **SMALL),
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Two classes of 12 arrays of 16 bits, coarse enough for their crops to differ."""
    folder, rng = tmp_path_factory.mktemp("scenes"), np.random.default_rng(0)
    for number in range(24):
        coarse = rng.integers(0, 65536, (5, 5, 5), dtype=np.uint16)
        here = folder / f"class{number % 2}"
        here.mkdir(exist_ok=True)
        np.save(here / f"{number}.npy", np.kron(coarse, np.ones((1, 9, 11), np.uint16)))
    return folder


@pytest.fixture(scope="module", params=RUNS)
def options(request, scenes):
    return {**TINY, **RUNS[request.param], "data": str(scenes)}


@pytest.fixture(scope="module")
def trained(options, tmp_path_factory):
    """With a probe at its end, which moves no number."""
    out = tmp_path_factory.mktemp("run") / "run"
    return eva_fast.pretrain(out=out, probe_data=options["data"], probe_every=4, **options)


def test_it_learns_resumes_and_is_handed_on(trained, options, tmp_path):
    losses = [json.loads(s)["loss"] for s in (trained.out / "metrics.jsonl").open()]
    assert min(losses[2:]) < losses[0]
    assert Image.open(trained.picture).size[0] > 3 * 208

    def die(step):
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        run(Config.from_options(dict(options, out=tmp_path / "run")), on_step=die)
    again = eva_fast.pretrain(out=tmp_path / "run", resume="auto", **options)
    for file in ("model.safetensors", "picture.png"):
        assert (again.out / file).read_bytes() == (trained.out / file).read_bytes()

    side = trained.model.sizes.img_size
    images = torch.randn(2, 5, side, side)
    for source in (trained.out, trained.checkpoint):
        space: dict = {}
        exec(export(source, tmp_path / f"{source.name}.pth", format="timm").snippet, space)
        with torch.no_grad():
            expected = trained.model.forward_features(images)
            if "torchvision" in options["model"]:
                network = trained.model.network
                torch.testing.assert_close(space["model"](images), network(images))
                continue
            found = space["model"].forward_features(images)
        found = found if found.ndim == 3 else found.flatten(2).mT
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    result = evaluate(trained.out, options["data"], probe=["knn"], out=tmp_path / "eval.json")
    assert [row.features for row in result.rows][-1] == "teacher hog"
    assert result.sizes["channels"] == 5
    probed = json.loads((trained.out / "probes.jsonl").read_text())
    assert probed["step"] == 4 and probed["knn"] == result.student.accuracy["knn"]
    count = plan("h100", images=1000, **{k: v for k, v in options.items() if k != "data"}).count
    if options["model"].startswith("eva") and "objective" not in options:
        assert count.parameters == parameter_count(trained.model.sizes)


def test_one_channel_of_the_drawings_is_grey(tmp_path):
    options = {**TINY, **VIT, "model": "eva_ti_patch8_32", "data": "builtin", "channels": 1}
    found = eva_fast.pretrain(out=tmp_path / "run", **{**options, "steps": 1, "kernels": "auto"})
    assert load_file(found.weights)["patch_embed.proj.weight"].shape == (32, 1, 8, 8)


def test_fused_layers_compute_the_same():
    images, mask = torch.randn(2, 5, 32, 32), torch.tensor([[1, 2], [0, 5]], dtype=torch.int32)
    target = torch.randn(4, 6)
    found = []
    for kernels in ("torch", "auto"):
        torch.manual_seed(0)
        model = create_model(
            "eva_ti_patch8_32", **VIT, channels=5, predict_dim=6, kernels=kernels
        ).eval()
        loss = model.loss(images, mask, target)
        loss.backward()
        found.append((loss.detach(), model.patch_embed.proj.weight.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"must be \[B,5,32,32\]"):
        model.forward_features(torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize("channels", [1, 5])
def test_weights_of_three_channels_are_adapted_as_timm_does(channels, scenes, tmp_path):
    torch.manual_seed(1)
    ours = create_model("eva_ti_patch8_32", **VIT, predict_dim=1)
    theirs = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=32, patch_size=8, embed_dim=32, depth=2,
        num_heads=2, mlp_ratio=1.5,
    )  # fmt: skip
    from timm.models._manipulate import adapt_input_conv

    more = dict(channels=channels, teacher_channels=(0, 0, 0), lr=0.0, min_lr=0.0, warmup_lr=0.0)
    data = str(scenes) if channels == 5 else "builtin"
    for name, state in (("eva_ti_patch8_32", ours), ("timm/vit_tiny_patch16_224", theirs)):
        path = tmp_path / f"{name.rpartition('/')[2]}.safetensors"
        values = {k: v.contiguous() for k, v in state.state_dict().items()}
        save_file(values, path)
        options = {
            **TINY,
            **VIT,
            **more,
            "model": name,
            "data": data,
            "init_from": path,
            "steps": 1,
        }
        found = load_file(eva_fast.pretrain(out=tmp_path / path.stem, **options).weights)
        first = "patch_embed.proj.weight"
        torch.testing.assert_close(found[first], adapt_input_conv(channels, values[first]))
        assert torch.equal(found["blocks.0.attn.qkv.weight"], values["blocks.0.attn.qkv.weight"])


def test_the_teacher_sees_its_three_channels():
    teacher = eva_fast.load_teacher("builtin", grid=(4, 4))
    mean, std = torch.rand(5), torch.rand(5) + 0.5
    images = torch.rand(2, 5, 32, 32)
    colours = images[:, [4, 2, 0]]
    clip = [torch.tensor(v).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD)]
    expected = teacher((colours - clip[0]) / clip[1])
    teacher.see((4, 2, 0), mean.tolist(), std.tolist())
    found = teacher((images - mean.view(5, 1, 1)) / std.view(5, 1, 1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_what_is_shown():
    grey = torch.linspace(-3, 9, 64).view(1, 1, 8, 8)
    shown = visible(grey)
    assert shown.dtype == torch.uint8 and shown.shape == (1, 3, 8, 8)
    assert shown[0, 0, 0, 0] == 0 and shown[0, 2, 7, 7] == 255
    assert visible(torch.randn(2, 2, 8, 8))[:, 2].eq(0).all()
    assert visible(torch.randn(2, 7, 8, 8)).shape == (2, 3, 8, 8)
    assert visible(torch.zeros(1, 4, 8, 8)).eq(0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(channels=17), "channels must be 1 to 16, got 17"),
        (dict(mean=(0.5,) * 3), "mean is of images with other than three channels"),
        (dict(channels=5, std=(1.0,) * 4), "std needs a number for each of the 5 channels"),
        (dict(channels=2, std=(1.0, 0.0)), "std must be above 0"),
        (dict(channels=5, decode="gpu"), "decode='gpu' is of JPEGs with three channels"),
        (dict(channels=5, data="builtin"), "the built-in drawings have three channels"),
        (dict(channels=5, objective="vqkd"), "'vqkd' is of images with three channels"),
        (dict(channels=5, objective="tokens"), "'tokens' is of images with three channels"),
        (dict(channels=5), "teacher 'hog' sees three channels, and the images have 5"),
        (dict(channels=5, teacher_channels=(0, 1, 5)), "three numbers from 0 to 4"),
        (dict(teacher_channels=(0, 1, 2)), "teacher_channels is of images with other than three"),
        (
            dict(channels=5, objective="fd", model="swinv2_tiny_window4_64"),
            "other than three channels are of a ViT",
        ),
    ],
)
def test_what_cannot_be_is_said_before_training(options, message, scenes, tmp_path):
    out = tmp_path / "run"
    given = {**TINY, "model": "eva_ti_patch8_32", "data": str(scenes), **options, "out": out}
    with pytest.raises(ValueError, match=message):
        eva_fast.pretrain(**given)
    assert not (out / "metrics.jsonl").exists()


def test_pixels_of_all_channels_and_their_picture():
    """What is painted is what was asked for, whatever the channels; a bright patch stays bright."""
    from eva_fast.objectives.picture import as_bytes
    from eva_fast.objectives.pixels import _as_images, pixel_targets

    images = torch.randn(2, 5, 12, 12)
    every = torch.arange(9, dtype=torch.int32).expand(2, -1)
    rows = pixel_targets(images, every, 4, norm_pix=False)
    assert rows.shape == (2, 9, 5 * 16)
    assert torch.equal(_as_images(rows, 4, 5, (3, 3)), images)
    one, brighter = as_bytes(images, images + 0.5, of=images)
    assert (brighter >= one).all() and torch.equal(one, visible(images))


def test_images_of_other_channels_than_the_run_are_one_error(scenes, tmp_path, caplog):
    options = {**TINY, **RUNS["own"], "data": str(scenes), "steps": 1}
    out = eva_fast.pretrain(out=tmp_path / "run", **options).out
    caplog.clear()
    with pytest.raises(ValueError, match="of the first 8 images none can be read: .*3 channels"):
        evaluate(out)
    assert not [r for r in caplog.records if "left out" in r.getMessage()]


def test_folders_of_other_libraries(scenes, tmp_path):
    """With the run's own statistics; open_clip has no place for such images."""
    pytest.importorskip("transformers")
    options = {**TINY, **RUNS["own"], "data": str(scenes), "steps": 1}
    trained = eva_fast.pretrain(out=tmp_path / "run", **options)
    out, images = trained.out, torch.randn(2, 5, 32, 32)
    with torch.no_grad():
        expected = trained.model.forward_features(images)
    for format, extract in (
        ("hf", lambda m: m.forward_features(images)),
        ("hf-vit", lambda m: m(images).last_hidden_state),
    ):
        space: dict = {}
        written = export(out, tmp_path / format, format=format)
        exec(written.snippet, space)
        with torch.no_grad():
            torch.testing.assert_close(extract(space["model"]), expected, rtol=1e-5, atol=1e-5)
        said = json.loads((written.path / "config.json").read_text())
        if format == "hf":
            assert said["pretrained_cfg"]["std"] == list(FIVE["std"])
            assert said["pretrained_cfg"]["input_size"] == [5, 32, 32]
        else:
            assert said["num_channels"] == 5
    with pytest.raises(ValueError, match="open_clip reads images with three channels"):
        export(out, tmp_path / "clip", format="open_clip")
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((out / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="nothing says it of these with 5 channels"):
        export(alone, tmp_path / "hf2", format="hf")
