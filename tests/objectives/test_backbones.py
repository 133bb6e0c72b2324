"""Runs whose student is timm's or torchvision's: they learn, resume, hand on what the library loads."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import eva_fast
from eva_fast.config import Config
from eva_fast.evaluation import evaluate
from eva_fast.evaluation.students import load_student
from eva_fast.layers.inputs import normalise
from eva_fast.model import Backbone, ModelSizes
from eva_fast.planning import plan
from eva_fast.planning.students import model_flops
from eva_fast.recipes.export import export
from eva_fast.recipes.pretrain import run
from tests.objectives.test_vqkd import Killed

timm = pytest.importorskip("timm")
pytest.importorskip("torchvision")

TINY = dict(
    data="builtin", device="cpu", workers=0, progress=False, kernels="torch", teacher="hog",
    batch_size=8, accumulate=2, ema=0.9, log_every=1, lr=3e-3, steps=6, checkpoint_every=2,
    drop_path=0.2,
)  # fmt: skip
VIT = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, mlp_hidden=48)
RUNS = {
    "eva with registers": dict(VIT, model="timm/vit_small_patch14_reg4_dinov2"),
    "eva of timm's Eva": dict(VIT, model="timm/eva02_tiny_patch14_224"),
    "fd of batch norms": dict(objective="fd", model="timm/test_resnet", img_size=64),
    "fd of torchvision": dict(objective="fd", model="torchvision/shufflenet_v2_x0_5", img_size=64),
}


@pytest.fixture(scope="module", params=RUNS)
def options(request):
    return {**TINY, **RUNS[request.param]}


@pytest.fixture(scope="module")
def trained(options, tmp_path_factory):
    return eva_fast.pretrain(out=tmp_path_factory.mktemp("run") / "run", **options)


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_run(trained, options):
    losses = [line["loss"] for line in lines(trained.out)]
    assert min(losses[3:]) < losses[0]
    assert isinstance(trained.model, Backbone) and not trained.model.training
    assert Image.open(trained.picture).size[0] > 3 * 208
    names = load_file(trained.weights).keys()
    assert names == trained.model.network.state_dict().keys()
    assert load_file(trained.out / "model_ema.safetensors").keys() == names


def test_killed_and_resumed_it_ends_with_the_same_bytes(trained, options, tmp_path):
    def die(step):
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        run(Config.from_options(dict(options, out=tmp_path)), on_step=die)
    again = eva_fast.pretrain(out=tmp_path, resume="auto", **options)
    for file in ("model.safetensors", "model_ema.safetensors", "picture.png"):
        assert (again.out / file).read_bytes() == (trained.out / file).read_bytes()


def test_its_library_loads_it_strictly(trained, options, tmp_path):
    """A finished run and a checkpoint, as the printed lines say; and the run's own file."""
    images = torch.randint(256, (3, 3, *(trained.model.sizes.img_size,) * 2), dtype=torch.uint8)
    pixels = normalise(images, torch.float32, trained.model.mean, trained.model.std)
    for source in (trained.out, trained.checkpoint):
        written = export(source, tmp_path / f"{source.name}.safetensors", format="timm")
        assert load_file(written.path).keys() == load_file(trained.weights).keys()
        space: dict = {}
        exec(written.snippet, space)
        for name, value in space["model"].state_dict().items():
            assert torch.equal(value, trained.model.network.state_dict()[name])
        if options["model"].startswith("timm"):
            with torch.no_grad():
                expected = trained.model.network.forward_features(pixels)
                assert torch.equal(space["model"].forward_features(pixels), expected)
    found = load_student(trained.weights, torch.device("cpu"))
    with torch.no_grad():
        assert torch.equal(found.forward_features(images), trained.model.forward_features(images))


def test_it_is_evaluated_and_starts_others(trained, options, tmp_path):
    for number in range(8):
        place = tmp_path / "data" / str(number % 2) / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (20 * number, 99, 255 * (number % 2))).save(place)
    result = evaluate(
        trained.out, tmp_path / "data", probe=["knn"], teacher="none", out=tmp_path / "eval.json"
    )
    rows = {row.features: row for row in result.rows}
    assert rows["student"].dim == trained.model.width
    assert result.sizes["name"] == options["model"]

    still = dict(options, steps=1, lr=0.0, min_lr=0.0, warmup_lr=0.0, init_from=trained.weights)
    again = eva_fast.pretrain(out=tmp_path / "run", **still)
    expected = dict(trained.model.network.named_parameters())
    found = load_file(again.weights)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_it_teaches(trained):
    teacher = eva_fast.load_teacher(trained.out, grid=trained.model.grid)
    images = torch.randint(256, (2, 3, *(trained.model.sizes.img_size,) * 2), dtype=torch.uint8)
    with torch.no_grad():
        expected = trained.model.forward_features(images)[:, trained.model.prefix_tokens :]
    torch.testing.assert_close(teacher(images), expected, rtol=1e-4, atol=1e-4)


def test_its_plan_has_its_parameters(trained, options):
    found = plan("h100", images=1000, **{k: v for k, v in options.items() if k != "data"})
    state = json.loads((trained.out / "environment.json").read_text())
    assert 0 < found.count.parameters <= state["parameters"]
    checkpointed = [option for option in found.options if option.checkpointing]
    assert bool(checkpointed) == (
        options["model"].startswith("timm/") and "objective" not in options
    )


def test_a_plans_arithmetic_is_that_of_a_vit_of_the_same_sizes():
    """Every token through every block, and the head: what a step of EVA's own needs."""
    options = {**TINY, **VIT, "model": "timm/vit_tiny_patch16_224", "teacher": "hog"}
    found = plan("h100", images=1000, **{k: v for k, v in options.items() if k != "data"})
    micro, masked = found.count.batch, found.count.masked
    expected = model_flops(ModelSizes(**VIT, predict_dim=108), micro, masked)
    assert found.count.needed_flops == expected


@pytest.mark.parametrize("model", ["vit_small_patch14_reg4_dinov2", "eva02_tiny_patch14_224"])
def test_fused_layers_learn_the_same(model, tmp_path):
    """The same draws of drop-path too; EVA-02's MLP is none that is fused."""
    found = []
    for kernels in ("torch", "native"):
        options = {**TINY, **VIT, "model": f"timm/{model}", "steps": 3, "kernels": kernels}
        trained = eva_fast.pretrain(out=tmp_path / kernels, **options)
        found.append([line["loss"] for line in lines(trained.out)])
    assert found[0] == pytest.approx(found[1], abs=2e-5)
    assert trained.model.network.eva_fast_report is not None


def test_timms_own_weights_start_it_at_other_sizes(tmp_path):
    """Positions and patches are fitted as timm fits them; a classifier is left out."""
    torch.manual_seed(5)
    arguments = dict(patch_size=8, embed_dim=32, depth=2, num_heads=2, mlp_ratio=1.5)
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=48, **arguments)
    path = tmp_path / "vit.pth"
    torch.save(theirs.state_dict(), path)
    options = {**TINY, **VIT, "model": "timm/vit_tiny_patch16_224", "ema": 0.0}
    still = dict(options, steps=1, lr=0.0, min_lr=0.0, warmup_lr=0.0, init_from=path)
    found = load_file(eva_fast.pretrain(out=tmp_path / "run", **still).weights)
    wanted = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, **arguments, num_classes=0, pretrained=True,
        pretrained_cfg_overlay=dict(file=str(path), num_classes=1000),
    ).state_dict()  # fmt: skip
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    other = dict(still, model="timm/vit_tiny_patch16_224", depth=3)
    with pytest.raises(
        ValueError, match=r"does not fit timm/vit_tiny_patch16_224: lacks blocks\.2"
    ):
        eva_fast.pretrain(out=tmp_path / "other", **other)


@pytest.mark.parametrize(
    "said",
    [
        dict(name="timm/test_vit", img_size=160, arguments=dict(checkpoint_path="x.pth")),
        dict(name="timm/test_vit", img_size=160, arguments=dict(depth="x")),
        dict(name="elsewhere/test_vit", img_size=160, arguments={}),
        dict(name="timm/test_vit"),
    ],
)
def test_a_file_asks_a_builder_for_sizes_alone(said, tmp_path):
    metadata = {"sizes": json.dumps({**said, "network": "backbone"})}
    save_file({"norm.weight": torch.ones(3)}, tmp_path / "x.safetensors", metadata)
    with pytest.raises(ValueError, match="names no network of timm or torchvision"):
        load_student(tmp_path / "x.safetensors", torch.device("cpu"))


def test_batch_norms_over_places_take_one_image_a_pass(tmp_path):
    options = {**TINY, **RUNS["fd of batch norms"], "accumulate": 8, "steps": 1}
    assert eva_fast.pretrain(out=tmp_path / "run", **options).loss is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(model="timm/test_resnet"), "masks patches, and timm/test_resnet has none.*'fd'"),
        (
            dict(model="timm/vit_tiny_patch16_224", objective="mae"),
            "'mae' trains this package's own ViTs .* not timm/vit_tiny",
        ),
        (
            dict(model="timm/vit_tiny_patch16_224", precision="fp8", kernels="auto"),
            "fp8' is of this package's own ViTs",
        ),
        (
            dict(model="timm/test_resnet", objective="fd", grad_checkpointing=True, img_size=64),
            "has batch norms",
        ),
        (
            dict(model="torchvision/swin_t", objective="fd", grad_checkpointing=True, img_size=64),
            "torchvision has no activation checkpointing of 'swin_t'",
        ),
        (
            dict(model="torchvision/mobilenet_v3_small", objective="fd", img_size=32, accumulate=8),
            "one value a channel of one image.*batch_size of at least 16, or a smaller accumulate",
        ),
    ],
    ids=["resnet", "mae", "fp8", "batch norm", "torchvision", "one image"],
)
def test_what_cannot_be_is_said_before_training(options, message, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(ValueError, match=message):
        eva_fast.pretrain(out=out, **{**TINY, "ema": 0.0, "steps": 1, **options})
    assert not (out / "metrics.jsonl").exists()
