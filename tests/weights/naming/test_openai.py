"""OpenAI's names, against the structure of its model in tests/teachers/openai_tower.py."""

from eva_fast.weights import naming
from tests.teachers.openai_tower import Clip
from tests.weights.networks import TOWER, close, images, random_, same, tower


def test_ours_in_their_model():
    ours = tower()
    theirs = clip()
    state = naming.openai.CLIP.write(ours.state_dict())
    result = theirs.load_state_dict(state, strict=False)
    assert not result.unexpected_keys
    assert not [name for name in result.missing_keys if name.startswith("visual.")]
    close(theirs(images()), ours(images()))


def test_theirs_in_our_model():
    ours, theirs = tower(), random_(clip())
    file = theirs.state_dict()
    assert naming.find(file, naming.CLIP) == (naming.openai.CLIP, "visual.")
    state = naming.openai.CLIP.read(file, "visual.")
    ours.load_state_dict(state, strict=True)
    close(ours(images()), theirs(images()))
    same(naming.openai.CLIP.write(state), {k: v for k, v in file.items() if k.startswith("visual")})


def clip():
    return Clip(
        size=48, patch=12, width=TOWER["width"], heads=TOWER["heads"], layers=TOWER["layers"],
        hidden=TOWER["mlp_hidden"], dim=TOWER["dim"],
    ).eval().requires_grad_(False)  # fmt: skip
