"""Exported students in transformers: as its own ViT, and as the wrapper of timm's."""

import pytest
import torch
from PIL import Image

from eva_fast.layers.inputs import normalise
from tests.weights.interop import every_size, exported, tokens_of
from tests.weights.networks import close

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()


@every_size
@torch.no_grad()
def test_vit(tmp_path, sizes):
    ours, space, written = exported(tmp_path / "vit", "hf-vit", sizes)
    theirs = space["model"]
    images, tokens = tokens_of(ours)
    close(theirs(images).last_hidden_state, tokens)
    automatic, report = transformers.AutoModel.from_pretrained(
        written.path, add_pooling_layer=False, output_loading_info=True
    )
    assert type(automatic) is type(theirs) and not any(report.values())


@every_size
@torch.no_grad()
def test_auto_model_wraps_timm(tmp_path, sizes):
    pytest.importorskip("timm")
    ours, space, written = exported(tmp_path / "hf", "hf", sizes)
    images, tokens = tokens_of(ours)
    found = space["wrapped"](images)
    close(found.last_hidden_state, tokens)
    close(found.pooler_output, tokens[:, 1:].mean(1))
    _, report = transformers.AutoModel.from_pretrained(written.path, output_loading_info=True)
    assert not any(report.values())


@pytest.mark.parametrize("format", ["hf-vit", "hf"])
def test_images_are_prepared_as_in_training(tmp_path, format):
    """Size and normalisation come with the folder."""
    pytest.importorskip("timm")
    _, _, written = exported(tmp_path / "folder", format, {})
    prepare = transformers.AutoImageProcessor.from_pretrained(written.path)
    image = torch.randint(256, (48, 48, 3), dtype=torch.uint8)
    found = prepare(Image.fromarray(image.numpy()), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found, normalise(image.permute(2, 0, 1)[None]))
