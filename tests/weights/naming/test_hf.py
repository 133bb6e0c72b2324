"""Hugging Face's names, against transformers: files that it loads, and its own files."""

import json

import pytest
import torch
from safetensors.torch import load_file

from eva_fast.weights import naming, read, read_student, write
from tests.weights.networks import close, images, random_, same, student, tower

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

CLIP = dict(
    hidden_size=176, intermediate_size=300, num_hidden_layers=2, num_attention_heads=2, image_size=48,
    patch_size=12, projection_dim=24,
)  # fmt: skip
VIT = dict(
    hidden_size=64, intermediate_size=144, num_hidden_layers=3, num_attention_heads=4, image_size=48,
    patch_size=12, layer_norm_eps=1e-6,
)  # fmt: skip


def save(folder, config, names, state):
    """A folder as the library would write it."""
    config.save_pretrained(folder)
    path = folder / "config.json"
    kind = {"clip_vision_model": "CLIPVisionModelWithProjection", "vit": "ViTModel"}
    described = json.loads(path.read_text())
    path.write_text(json.dumps({**described, "architectures": [kind[described["model_type"]]]}))
    write(folder / "model.safetensors", names.write(state), {"format": "pt"})


def loaded(kind, folder, **options):
    """A model out of the library, without a single missing, unknown or fresh weight."""
    model, report = kind.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(
        report[fault] for fault in ("missing_keys", "unexpected_keys", "mismatched_keys")
    )
    return model.eval().requires_grad_(False)


def clip_features(model):
    tokens = model.vision_model(images()).last_hidden_state[:, 1:]
    return model.visual_projection(model.vision_model.post_layernorm(tokens))


def test_our_tower_in_their_model(tmp_path):
    ours = tower()
    save(tmp_path, transformers.CLIPVisionConfig(**CLIP), naming.hf.CLIP, ours.state_dict())
    theirs = loaded(transformers.CLIPVisionModelWithProjection, tmp_path)
    close(clip_features(theirs), ours(images()))


@pytest.mark.parametrize("whole", [False, True], ids=["vision", "text too"])
def test_their_tower_in_our_model(tmp_path, whole):
    config = transformers.CLIPVisionConfig(**CLIP)
    if whole:
        text = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, vocab_size=50)
        text |= dict(
            num_attention_heads=2, max_position_embeddings=8, bos_token_id=0, eos_token_id=1
        )
        config = transformers.CLIPConfig(
            vision_config=config.to_dict(), text_config=text, projection_dim=24
        )
        theirs = random_(transformers.CLIPModel(config))
    else:
        theirs = random_(transformers.CLIPVisionModelWithProjection(config))
    theirs.save_pretrained(tmp_path)
    file = read(tmp_path)
    assert naming.find(file, naming.CLIP) == (naming.hf.CLIP, "vision_model.")
    state = naming.hf.CLIP.read(file, "vision_model.")
    ours = tower()
    ours.load_state_dict(state, strict=True)
    close(ours(images()), clip_features(theirs))
    same(naming.hf.CLIP.write(state), {k: file[k] for k in file if k.startswith("vis")})


def test_our_student_in_their_model(tmp_path):
    ours = student()
    save(tmp_path, transformers.ViTConfig(**VIT), naming.hf.VIT, ours.state_dict())
    theirs = loaded(transformers.ViTModel, tmp_path, add_pooling_layer=False)
    close(theirs(images()).last_hidden_state, ours.forward_features(images()).detach())


@pytest.mark.parametrize("kind", ["ViTModel", "ViTForImageClassification"])
def test_their_model_in_our_student(tmp_path, kind):
    theirs = random_(getattr(transformers, kind)(transformers.ViTConfig(**VIT)))
    theirs.save_pretrained(tmp_path)
    state, _ = read_student(tmp_path)
    ours = student()
    ours.load_official({**ours.state_dict(), **state})
    vit = getattr(theirs, "vit", theirs)
    close(ours.forward_features(images()).detach(), vit(images()).last_hidden_state)
    # Exactly back, but for the key's bias, which moves no softmax and which the student has not.
    prefix = "vit." if kind != "ViTModel" else ""
    back = naming.hf.VIT.under(prefix, "hf").write(state)
    file = load_file(tmp_path / "model.safetensors")
    bias = [name for name in back if name.endswith("key.bias")]
    assert len(bias) == 3 and not any(back[name].any() for name in bias)
    others = [n for n in back if n not in bias]
    assert all(torch.equal(back[name], file[name]) for name in others)
    assert not [n for n in file if n not in back and "pooler" not in n and "classifier" not in n]
