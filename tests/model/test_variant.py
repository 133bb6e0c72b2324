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
from eva_fast.train.resolve import sample_options, setting_of
from eva_fast.weights import read
from tests.model.reference import STATISTICS, predictions

SIZES = dict(
    img_size=40, patch_size=8, embed_dim=48, depth=3, num_heads=3, mlp_hidden=96, predict_dim=20
)
VARIANTS = {
    "imagenet": Variant(normalize="imagenet"),
    "tenth": Variant(patch_embed_grad=0.1),
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
        (dict(objective="pixels", normalize="clip"), "normalize='clip' is of EVA's own students"),
        (
            dict(model="timm/vit_tiny_patch16_224", embed_dim=None, normalize="imagenet"),
            "own students",
        ),
        (dict(channels=2, teacher_channels=(0, 1, 1), normalize="imagenet"), "with three channels"),
        (dict(patch_embed_grad=0.0), "patch_embed_grad must be above 0"),
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
