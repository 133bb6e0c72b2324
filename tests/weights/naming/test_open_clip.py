"""open_clip's names, against open_clip: its own towers, and timm's inside it."""

import pytest

from eva_fast.weights import naming, read_student, write
from tests.weights.networks import (
    TIMM_STUDENT,
    TOWER,
    close,
    images,
    random_,
    same,
    student,
    tower,
)

open_clip = pytest.importorskip("open_clip")
timm = pytest.importorskip("timm")
TEXT = dict(context_length=5, vocab_size=11, width=64, heads=1, layers=1)


def clip():
    vision = dict(
        image_size=48, patch_size=12, width=176, head_width=88, layers=2, mlp_ratio=300 / 176
    )
    model = open_clip.CLIP(TOWER["dim"], vision, TEXT, quick_gelu=True)
    model.visual.output_tokens = True
    return model.eval().requires_grad_(False)


def features(model):
    return model.visual(images())[1] @ model.visual.proj


def strictly(model, state):
    """Loads the image tower's tensors: all of them and nothing else."""
    result = model.load_state_dict(state, strict=False)
    assert not result.unexpected_keys
    assert not [name for name in result.missing_keys if name.startswith("visual.")]


def test_our_tower_in_their_model():
    ours, theirs = tower(), clip()
    strictly(theirs, naming.open_clip.CLIP.write(ours.state_dict()))
    close(features(theirs), ours(images()))


def test_their_tower_in_our_model():
    ours, theirs = tower(), random_(clip())
    file = theirs.state_dict()
    found, prefix = naming.find(file, naming.CLIP)
    state = found.read(file, prefix)
    ours.load_state_dict(state, strict=True)
    close(ours(images()), features(theirs))
    same(found.write(state), {k: v for k, v in file.items() if k.startswith("visual.")})


@pytest.fixture(params=["avg", "token"])
def custom(request, monkeypatch):
    """(naming, a CustomTextCLIP around timm's EVA-01 of the student's sizes)."""
    original = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, **given: original(name, **{**given, **TIMM_STUDENT})
    )
    vision = dict(
        timm_model_name="eva_giant_patch14_224",
        timm_pool=request.param,
        timm_proj="none",
        image_size=48,
    )
    model = open_clip.CustomTextCLIP(TIMM_STUDENT["embed_dim"], vision, TEXT)
    pooled = request.param == "avg"
    names = naming.open_clip.EVA_POOLED if pooled else naming.open_clip.EVA
    return names, model.eval().requires_grad_(False)


def tokens(model, names):
    trunk = model.visual.trunk
    out = trunk.forward_features(images())
    return trunk.fc_norm(out) if names is naming.open_clip.EVA_POOLED else out


def test_our_student_in_their_model(custom):
    names, theirs = custom
    ours = student()
    strictly(theirs, names.write(ours.state_dict()))
    close(tokens(theirs, names), ours.forward_features(images()).detach())


def test_their_model_in_our_student(custom, tmp_path):
    names, theirs = custom
    random_(theirs)
    file = theirs.state_dict()
    write(tmp_path / "open_clip_model.safetensors", file)
    state, _ = read_student(tmp_path)
    ours = student()
    ours.load_official({**ours.state_dict(), **state})
    close(ours.forward_features(images()).detach(), tokens(theirs, names))
    same(names.write(state), {k: v for k, v in file.items() if k.startswith("visual.trunk.")})
