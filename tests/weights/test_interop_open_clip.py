"""Exported students as open_clip's image towers: strictly loaded, the text tower fresh."""

import json

import pytest
import torch
from PIL import Image

from eva_fast import weights
from eva_fast.layers.inputs import normalise
from eva_fast.weights import naming
from tests.weights.interop import every_size, tokens_of
from tests.weights.networks import close, same, student

open_clip = pytest.importorskip("open_clip")
pytest.importorskip("timm")


def smaller_text(folder):
    """The configuration with a text tower that takes no time."""
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"] = dict(
        context_length=5, vocab_size=11, width=64, heads=1, layers=1
    )
    path.write_text(json.dumps(config))


@every_size
@torch.no_grad()
def test_image_tower(tmp_path, sizes):
    ours = student(**sizes)
    written = weights.export(ours, tmp_path / "tower", "open_clip")
    smaller_text(written.path)
    space = {}
    exec(written.snippet, space)
    theirs = space["model"]
    visual = {n: t for n, t in theirs.state_dict().items() if n.startswith("visual.trunk.")}
    same(visual, naming.open_clip.EVA.write(ours.official_state_dict()))
    images, tokens = tokens_of(ours)
    close(theirs.visual.trunk.forward_features(images), tokens)
    close(theirs.visual.trunk(images), tokens[:, 1:].mean(1))
    assert theirs.encode_image(images).shape == (2, 512)
    assert theirs.encode_text(torch.zeros(2, 5, dtype=torch.int64)).shape == (2, 512)


def test_images_are_prepared_as_in_training(tmp_path):
    written = weights.export(student(), tmp_path / "tower", "open_clip")
    smaller_text(written.path)
    prepare = open_clip.create_model_and_transforms(
        f"local-dir:{written.path}", load_weights=False
    )[2]
    image = torch.randint(256, (48, 48, 3), dtype=torch.uint8)
    found = prepare(Image.fromarray(image.numpy()))
    torch.testing.assert_close(found, normalise(image.permute(2, 0, 1)[None])[0])


def test_a_trained_clip_comes_back_as_a_student(tmp_path):
    """As open_clip saves it while it trains: other towers and DataParallel's prefix around."""
    ours = student()
    written = weights.export(ours, tmp_path / "tower", "open_clip")
    smaller_text(written.path)
    space = {}
    exec(written.snippet, space)
    state = {f"module.{name}": value for name, value in space["model"].state_dict().items()}
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "epoch_1.pt")
    found, _ = weights.read_student(tmp_path / "epoch_1.pt")
    own = ours.official_state_dict()
    same(
        found, {n: own[n] for n in own if n not in ("mask_token", "lm_head.weight", "lm_head.bias")}
    )


def test_the_text_tower_is_openais_size(tmp_path):
    written = weights.export(student(), tmp_path / "tower", "open_clip")
    config = json.loads((written.path / "open_clip_config.json").read_text())["model_cfg"]
    published = open_clip.get_model_config("ViT-B-16")
    assert config["text_cfg"] == published["text_cfg"]
    assert config["embed_dim"] == published["embed_dim"]
