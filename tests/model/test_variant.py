"""What EVA's student may have beside its published network, against the maths written out."""

import pytest
import torch

import eva_fast
from eva_fast.config import Config
from eva_fast.evaluation.students import load_checkpoint, load_student
from eva_fast.model import create_model
from eva_fast.model.variant import Variant
from eva_fast.objectives import open_objective
from eva_fast.planning import plan
from eva_fast.recipes.export import export
from eva_fast.train import decay_groups
from eva_fast.train.resolve import sample_options, setting_of
from eva_fast.weights import formats, initialise, read, write_student
from tests.model.reference import STATISTICS, predictions

SIZES = dict(
    img_size=40, patch_size=8, embed_dim=48, depth=3, num_heads=3, mlp_hidden=96, predict_dim=20
)
VARIANTS = {
    "imagenet": Variant(normalize="imagenet"),
    "tenth": Variant(patch_embed_grad=0.1),
    "scaled": Variant(layer_scale=0.1),
    "shared": Variant(relative_bias="shared"),
    "decoupled": Variant(relative_bias="decoupled"),
    "all": Variant(
        normalize="imagenet", patch_embed_grad=0.1, layer_scale=1e-5, relative_bias="decoupled"
    ),
    "beits": Variant(layer_scale=0.1, relative_bias="shared"),
}
TINY = dict(
    device="cpu", workers=0, progress=False, kernels="torch", teacher="hog", batch_size=8, steps=2,
    model="eva_ti_patch8_32", embed_dim=32, depth=2, num_heads=2, mlp_hidden=48,
)  # fmt: skip


def student(variant, kernels="auto", **options):
    torch.manual_seed(0)
    made = create_model(**SIZES, variant=variant, kernels=kernels, **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def batch(seed=1):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (3, 3, 40, 40), dtype=torch.uint8, generator=generator)
    mask = torch.zeros(3, 25, dtype=torch.bool)
    for row in mask:
        row[torch.randperm(25, generator=generator)[:9]] = True
    return images, mask, torch.randn(27, 20, generator=generator)


def loss_of(rows, target):
    return -torch.nn.functional.cosine_similarity(rows, target.to(rows.dtype), dim=-1).mean()


def expected(model, variant):
    """(loss, gradients) of the written out maths in float64."""
    images, mask, target = batch()
    p = {name: v.detach().double().requires_grad_() for name, v in model.named_parameters()}
    rows = predictions(
        p, images, mask, patch=8, heads=3, depth=3, normalize=variant.normalize,
        patch_embed_grad=variant.patch_embed_grad,
    )  # fmt: skip
    loss = loss_of(rows, target)
    return loss.item(), dict(zip(p, torch.autograd.grad(loss, list(p.values()))))


@pytest.mark.parametrize("kernels", ["auto", "torch"])
@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_gradients_are_the_written_out_ones(name, kernels):
    variant = VARIANTS[name]
    model = student(variant, kernels)
    images, mask, target = batch()
    loss = model.loss(images, mask, target)
    wanted, gradients = expected(model, variant)
    assert abs(loss.item() - wanted) < 1e-6
    loss.backward()
    for key, p in model.named_parameters():
        off = (p.grad.double() - gradients[key]).norm()
        assert off <= 1e-5 * gradients[key].norm() + 1e-10, key


@pytest.mark.parametrize("kernels", ["auto", "torch"])
@pytest.mark.parametrize("name", VARIANTS)
def test_in_float64_to_the_last_bits(name, kernels):
    """The fused layers and the plain ones; images normalised already, for bytes are normalised in
    float32."""
    variant = VARIANTS[name]
    model = student(variant, kernels).double()
    images, mask, target = batch()
    mean, std = (torch.tensor(v).double().view(3, 1, 1) for v in STATISTICS[variant.normalize])
    loss = model.loss((images.double() / 255 - mean) / std, mask, target.double())
    wanted, gradients = expected(model, variant)
    assert abs(loss.item() - wanted) < 1e-13
    loss.backward()
    for key, p in model.named_parameters():
        off = (p.grad - gradients[key]).norm()
        assert off <= 1e-11 * gradients[key].norm() + 1e-15, key


@pytest.mark.parametrize("name", VARIANTS)
def test_fused_is_plain_with_drop_path_and_checkpoints(name):
    found = []
    for kernels in ("auto", "torch"):
        model = student(VARIANTS[name], kernels, drop_path=0.5).train()
        model.set_grad_checkpointing(kernels == "auto")
        torch.manual_seed(3)
        loss = model.loss(*batch())
        loss.backward()
        found.append((loss.item(), {n: p.grad for n, p in model.named_parameters()}))
    (loss, gradients), (plain, wanted) = found
    assert abs(loss - plain) < 1e-6
    for key, value in wanted.items():
        assert (gradients[key] - value).norm() <= 2e-5 * value.norm() + 1e-9, key


RUNS = {
    "imagenet": dict(normalize="imagenet"),
    "tenth": dict(patch_embed_grad=0.1),
    "beits": dict(layer_scale=0.1, relative_bias="shared", normalize="imagenet"),
    "decoupled": dict(relative_bias="decoupled"),
    "fd": dict(objective="fd", layer_scale=0.2, relative_bias="shared"),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_its_files_and_its_plan(name, tmp_path):
    """The student of its file, of its checkpoint, and of an export in official naming: the same."""
    options = {**TINY, **RUNS[name], "out": tmp_path / "run"}
    result = eva_fast.pretrain(**options)
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    features = result.model.eval().forward_features(images)
    device = torch.device("cpu")
    (checkpoint,) = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1:]
    for found in (load_student(result.weights, device), load_checkpoint(checkpoint, device)):
        torch.testing.assert_close(found.forward_features(images), features, rtol=1e-5, atol=1e-5)
    path = export(tmp_path / "run", tmp_path / "official.pth", format="official").path
    state = torch.load(path, weights_only=True)["model"]
    assert all(torch.equal(state[key], value) for key, value in read(result.weights).items())
    again = eva_fast.pretrain(
        **{**options, "out": tmp_path / "again", "init_from": path, "lr": 1e-9}
    )
    assert again.weights.exists()
    planned = plan(**{key: options[key] for key in ("model", "teacher", *RUNS[name])})
    assert planned is not None


@pytest.mark.parametrize(
    "options, message",
    [
        (
            dict(model="beit_ti_patch8_32", objective="fd", patch_embed_grad=0.1),
            "of EVA's own students",
        ),
        (
            dict(objective="mae", patch_embed_grad=0.1),
            "patch_embed_grad=0.1 is of EVA's own students",
        ),
        (
            dict(model="beit_ti_patch8_32"),
            "'eva' trains eva_ti_patch8_32, not beit_ti_patch8_32: relative_bias='shared'",
        ),
        (dict(objective="pixels", normalize="clip"), "normalize='clip' is of EVA's own students"),
        (
            dict(model="timm/vit_tiny_patch16_224", embed_dim=None, normalize="imagenet"),
            "own students",
        ),
        (dict(channels=2, teacher_channels=(0, 1, 1), normalize="imagenet"), "with three channels"),
        (dict(patch_embed_grad=0.0), "patch_embed_grad must be above 0"),
        (dict(layer_scale=0.0), "layer_scale must be above 0, got 0"),
        (dict(relative_bias="both"), "relative_bias must be one of none, shared, decoupled"),
        (dict(objective="vqkd", layer_scale=0.1), "layer_scale=0.1 is of EVA's own students"),
    ],
)
def test_what_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        setting = setting_of(Config.from_options({**TINY, **options}))
        sample_options(setting, open_objective(setting.config.objective.objective))


def test_maes_encoder_takes_other_statistics(tmp_path):
    result = eva_fast.pretrain(
        **TINY, objective="mae", normalize="imagenet", decoder_dim=32, decoder_heads=2, drop_path=0.0,
        out=tmp_path / "mae",
    )  # fmt: skip
    assert result.model.statistics == "imagenet"
    assert "imagenet" in read(result.weights).metadata["sizes"]


def test_initial_values_and_decay():
    """As the official code: gamma constant and not decayed, tables 0 and decayed."""
    plain, made = (
        (torch.manual_seed(5), create_model(**SIZES, variant=v))[1]
        for v in (Variant(), VARIANTS["all"])
    )
    state = made.state_dict()
    assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items())
    extra = state.keys() - plain.state_dict().keys()
    tables = {f"rel_pos_bias.relative_position_bias_for_{axis}" for axis in ("high", "width")}
    gammas = {f"blocks.{i}.gamma_{k}" for i in range(3) for k in (1, 2)}
    assert extra == tables | gammas
    assert all((state[name] == 1e-5).all() for name in gammas)
    assert all(state[name].shape == (12, 3) and not state[name].any() for name in tables)
    decayed, others = map(set, decay_groups(made))
    assert tables <= decayed and gammas <= others


@pytest.mark.parametrize("name", ["scaled", "shared", "beits"])
@pytest.mark.parametrize("format", ["timm", "hf"])
def test_timm_gives_the_same(name, format, tmp_path):
    model = student(VARIANTS[name]).eval()
    found = {}
    exec(formats.export(model, tmp_path / ("a.safetensors" * (format == "timm")), format).snippet
         .split("\nfrom transformers")[0], found)  # fmt: skip
    images = torch.randn(2, 3, 40, 40)
    torch.testing.assert_close(
        found["model"].forward_features(images),
        model.forward_features(images),
        rtol=1e-5,
        atol=1e-5,
    )


def test_places_that_others_lack(tmp_path):
    decoupled, scaled = student(VARIANTS["decoupled"]), student(VARIANTS["scaled"])
    for format in ("timm", "hf", "open_clip"):
        with pytest.raises(
            ValueError, match="timm has no place for a decoupled relative position bias"
        ):
            formats.export(decoupled, tmp_path / ("x.pth" if format == "timm" else "x"), format)
    for model in (decoupled, scaled):
        with pytest.raises(
            ValueError, match="ViTModel has neither LayerScale nor relative positions"
        ):
            formats.export(model, tmp_path / "y", "hf-vit")
    assert not list(tmp_path.iterdir())
    said = formats.export(decoupled, tmp_path / "z.pth").snippet
    assert "strict=False" in said and "what it misses is computed" in said


def test_starting_from_files(tmp_path):
    """Gammas and tables that a file lacks start anew; those that the student lacks are an error; a
    shared table is resized, a decoupled one is not."""
    plain, beits = student(Variant()), student(VARIANTS["beits"])
    path = formats.export(plain, tmp_path / "plain.pth").path
    fresh = create_model(**SIZES, variant=VARIANTS["beits"])
    initialise(fresh, path)
    assert torch.equal(fresh.blocks[1].mlp.fc1.weight, plain.blocks[1].mlp.fc1.weight)
    assert (fresh.blocks[1].gamma_2 == 0.1).all() and not any(
        fresh.rel_pos_bias.parameters().__next__().flatten()
    )
    path = formats.export(beits, tmp_path / "beits.pth").path
    with pytest.raises(
        ValueError, match="has rel_pos_bias.*give layer_scale and relative_bias too"
    ):
        initialise(create_model(**SIZES), path)
    larger = create_model(**{**SIZES, "img_size": 56}, variant=VARIANTS["beits"])
    initialise(larger, path)
    assert larger.rel_pos_bias.relative_position_bias_table.shape == (13 * 13 + 3, 3)
    path = formats.export(student(VARIANTS["decoupled"]), tmp_path / "decoupled.pth").path
    other = create_model(**{**SIZES, "img_size": 56}, variant=VARIANTS["decoupled"])
    with pytest.raises(ValueError, match="is of 5 patches a side and is not resized to 7"):
        initialise(other, path)


def test_a_scaled_student_is_a_teacher(tmp_path):
    model = student(VARIANTS["scaled"]).eval()
    images = torch.randint(256, (2, 3, 40, 40), dtype=torch.uint8)
    teacher = eva_fast.load_teacher(
        str(write_student(model, tmp_path / "s.safetensors")), grid=(5, 5)
    )
    torch.testing.assert_close(
        teacher(images), model.forward_features(images)[:, 1:], rtol=1e-4, atol=1e-4
    )
    path = write_student(student(VARIANTS["shared"]), tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="its attention has a bias of relative positions"):
        eva_fast.load_teacher(str(path), grid=(5, 5))
