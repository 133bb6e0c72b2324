"""timm's names, against timm: strict loading both ways, the same features."""

import pytest
import torch

from eva_fast.weights import naming, read_student, write
from tests.weights.networks import (
    TIMM_STUDENT,
    close,
    images,
    random_,
    same,
    student,
    tower,
)

timm = pytest.importorskip("timm")


def build(name, **options):
    return timm.create_model(name, **options).eval().requires_grad_(False)


def student_like(kind, **options):
    """(naming, timm's model of the student's sizes, how it gives tokens after the last norm)."""
    pooled = options.get("global_pool", "avg" if kind.startswith("eva") else "token") == "avg"
    tables = {
        ("eva", False): naming.timm.EVA,
        ("eva", True): naming.timm.EVA_POOLED,
        ("vit", False): naming.timm.VIT,
        ("vit", True): naming.timm.VIT_POOLED,
    }
    names = tables[kind[:3], pooled]
    model = build(kind, **TIMM_STUDENT, **options)

    def tokens():
        out = model.forward_features(images())
        return model.fc_norm(out) if pooled else out

    return names, model, tokens


CASES = {
    "eva": ("eva_giant_patch14_224", dict(num_classes=0)),
    "eva, class token": ("eva_giant_patch14_224", dict(num_classes=0, global_pool="token")),
    "eva, no pooling": ("eva_giant_patch14_224", dict(num_classes=0, global_pool="")),
    "eva, classifier": ("eva_giant_patch14_224", dict(num_classes=5)),
    "vit": ("vit_tiny_patch16_224", dict(num_classes=0)),
    "vit, classifier": ("vit_tiny_patch16_224", dict(num_classes=5)),
    "vit, pooled": ("vit_tiny_patch16_224", dict(num_classes=5, global_pool="avg")),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_our_student_in_their_model(case):
    kind, options = case
    names, theirs, tokens = student_like(kind, **options)
    ours = student()
    result = theirs.load_state_dict(names.write(ours.state_dict()), strict=False)
    classifier = ["head.weight", "head.bias"] if options["num_classes"] else []
    assert not result.unexpected_keys and result.missing_keys == classifier
    close(tokens(), ours.forward_features(images()).detach())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_their_model_in_our_student(case, tmp_path):
    kind, options = case
    names, theirs, tokens = student_like(kind, **options)
    random_(theirs)
    file = theirs.state_dict()
    write(tmp_path / "model.safetensors", file)
    state, _ = read_student(tmp_path / "model.safetensors")
    ours = student()
    ours.load_official({**ours.state_dict(), **state})
    # A key's bias, which the student has not, moves no softmax.
    close(ours.forward_features(images()).detach(), tokens())
    back = names.write(state)
    if kind.startswith("vit"):
        for name in [name for name in back if name.endswith("qkv.bias")]:
            back[name][64:128] = file[name][64:128]
    same(back, {k: v for k, v in file.items() if not k.startswith("head.")})


def clip(**options):
    sizes = dict(embed_dim=176, num_heads=2, depth=2, patch_size=12, img_size=48, num_classes=24)
    sizes["mlp_ratio"] = 300 / 176
    return build("vit_base_patch16_clip_quickgelu_224", **{**sizes, **options})


def features(model):
    return model.head(model.forward_features(images())[:, 1:])


@pytest.mark.parametrize("dim", [24, None], ids=["projection", "no projection"])
def test_our_tower_in_their_model(dim):
    ours, theirs = tower(dim=dim), clip(num_classes=dim or 0)
    theirs.load_state_dict(naming.timm.CLIP.write(ours.state_dict()), strict=True)
    close(features(theirs), ours(images()))


def test_their_tower_in_our_model():
    ours, theirs = tower(), random_(clip())
    torch.nn.init.zeros_(theirs.head.bias)
    file = theirs.state_dict()
    assert naming.find(file, naming.CLIP) == (naming.timm.CLIP, "")
    state = naming.timm.CLIP.read(file, "")
    ours.load_state_dict(state, strict=True)
    close(ours(images()), features(theirs))
    same(naming.timm.CLIP.write(state), file)


@pytest.mark.parametrize("classes, zero_bias", [(5, False), (1000, True), (21841, True)])
def test_a_classifier_is_no_projection(classes, zero_bias, caplog):
    """A bias says so, or as many rows as ImageNet has classes, trained or fresh."""
    theirs = random_(clip(num_classes=classes))
    if zero_bias:
        torch.nn.init.zeros_(theirs.head.bias)
    assert theirs.head.bias.any() != zero_bias
    assert "proj" not in naming.timm.CLIP.read(theirs.state_dict(), "")
    assert f"head.weight [{classes}, 176] is a classifier's, no projection of CLIP's" in caplog.text
