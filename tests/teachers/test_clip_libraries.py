"""CLIP towers as open_clip, transformers and timm save them give those libraries' features."""

import json
import logging

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from eva_fast.teachers.base import CLIP_MEAN, CLIP_STD
from tests.teachers.clips import BATCH, TOLERANCE, check, images, load
from tests.teachers.openai_tower import randomise

# open_clip ---------------------------------------------------------------------------------------


def open_clip_model(quick_gelu=False, **vision):
    open_clip = pytest.importorskip("open_clip")
    config = dict(image_size=48, patch_size=12, width=176, head_width=88, layers=2, mlp_ratio=2.0)
    text = dict(context_length=5, vocab_size=11, width=64, heads=1, layers=1)
    model = open_clip.CLIP(
        embed_dim=24, vision_cfg={**config, **vision}, text_cfg=text, quick_gelu=quick_gelu
    )
    model_cfg = dict(
        embed_dim=24, vision_cfg={**config, **vision}, text_cfg=text, quick_gelu=quick_gelu
    )
    return randomise(model), model_cfg


def open_clip_features(model):
    visual = model.visual.double()
    visual.output_tokens = True
    with torch.no_grad():
        tokens = visual(images().double())[1]  # after ln_post, before the projection
    return tokens @ visual.proj.double().detach()


@pytest.mark.parametrize("quick", [False, True], ids=["gelu", "quick_gelu"])
@pytest.mark.parametrize("kind", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_open_clip_folder(tmp_path, quick, kind):
    model, config = open_clip_model(quick)
    if kind.endswith("safetensors"):
        save_file(model.state_dict(), tmp_path / kind)
    else:
        torch.save(model.state_dict(), tmp_path / kind)
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": {"mean": CLIP_MEAN, "std": CLIP_STD}})
    )
    expected = open_clip_features(model)
    check(load(tmp_path), expected)
    check(load(tmp_path / kind), expected)


def test_open_clip_file_without_configuration(tmp_path, caplog):
    """A whole open_clip model says nothing of its GELU: the exact one is assumed, and said."""
    model, _ = open_clip_model(width=128, head_width=64)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    with caplog.at_level(logging.WARNING, "eva_fast"):
        teacher = load(tmp_path / "weights.pt")
    check(teacher, open_clip_features(model))
    assert "assuming gelu" in caplog.text


def test_open_clip_without_ln_pre_and_with_other_eps(tmp_path):
    model, config = open_clip_model(no_ln_pre=True, norm_kwargs={"eps": 1e-3})
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    check(load(tmp_path), open_clip_features(model))


def test_normalisation_of_the_configuration(tmp_path):
    model, config = open_clip_model()
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    half = [0.5, 0.5, 0.5]
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": {"mean": half, "std": half}})
    )
    pixels = torch.randint(0, 256, (BATCH, 3, 48, 48), dtype=torch.uint8)
    visual = model.visual.double()
    visual.output_tokens = True
    with torch.no_grad():
        expected = visual(pixels.double() / 127.5 - 1)[1] @ visual.proj
    torch.testing.assert_close(load(tmp_path)(pixels), expected, **TOLERANCE)


# Hugging Face ------------------------------------------------------------------------------------


def hf_config(act="quick_gelu"):
    transformers = pytest.importorskip("transformers")
    return transformers, transformers.CLIPVisionConfig(
        hidden_size=176,
        intermediate_size=300,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=48,
        patch_size=12,
        projection_dim=24,
        hidden_act=act,
        layer_norm_eps=1e-4,
    )


def hf_features(vision, projection):
    vision = getattr(vision, "vision_model", vision)
    with torch.no_grad():
        tokens = vision.double()(images().double()).last_hidden_state[:, 1:]
        tokens = vision.post_layernorm(tokens)
        return tokens if projection is None else projection.double()(tokens)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_hugging_face_vision_with_projection(tmp_path, act):
    transformers, config = hf_config(act)
    model = randomise(transformers.CLIPVisionModelWithProjection(config))
    model.save_pretrained(tmp_path)
    expected = hf_features(model, model.visual_projection)
    check(load(tmp_path), expected)
    check(load(tmp_path / "model.safetensors"), expected)


def test_hugging_face_vision_without_projection(tmp_path):
    transformers, config = hf_config()
    model = randomise(transformers.CLIPVisionModel(config))
    model.save_pretrained(tmp_path)
    check(load(tmp_path), hf_features(model, None), (16, 176))


@pytest.mark.parametrize("shards", [False, True], ids=["one_file", "shards"])
def test_hugging_face_whole_model(tmp_path, shards):
    transformers, config = hf_config()
    text = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    text |= dict(vocab_size=50, max_position_embeddings=8, bos_token_id=0, eos_token_id=1)
    whole = transformers.CLIPConfig(
        vision_config=config.to_dict(), text_config=text, projection_dim=24
    )
    model = randomise(transformers.CLIPModel(whole))
    model.save_pretrained(tmp_path, **({"max_shard_size": "300KB"} if shards else {}))
    assert (tmp_path / "model.safetensors.index.json").exists() == shards
    check(load(tmp_path), hf_features(model.vision_model, model.visual_projection))


def test_hugging_face_old_names_and_normalisation(tmp_path):
    """Old files hold position_ids, and a preprocessor that may differ from CLIP's."""
    transformers, config = hf_config()
    model = randomise(transformers.CLIPVisionModelWithProjection(config))
    model.save_pretrained(tmp_path)
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    state["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3})
    )
    pixels = torch.randint(0, 256, (BATCH, 3, 48, 48), dtype=torch.uint8)
    vision = model.vision_model.double()
    with torch.no_grad():
        tokens = vision((pixels.double() / 255 - 0.5) / 0.25).last_hidden_state[:, 1:]
        expected = model.visual_projection.double()(vision.post_layernorm(tokens))
    torch.testing.assert_close(load(tmp_path)(pixels), expected, **TOLERANCE)


def test_hugging_face_without_a_key_projection(tmp_path):
    transformers, config = hf_config()
    model = transformers.CLIPVisionModelWithProjection(config)
    state = {k: v for k, v in model.state_dict().items() if "layers.1.self_attn.k_proj.b" not in k}
    model.save_pretrained(tmp_path)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing .*layers\.1\.self_attn\.k_proj\.bias"):
        load(tmp_path)


# timm --------------------------------------------------------------------------------------------


def timm_model(name="vit_base_patch16_clip_224", **options):
    timm = pytest.importorskip("timm")
    sizes = dict(embed_dim=176, num_heads=2, depth=2, patch_size=12, img_size=48, num_classes=24)
    return randomise(timm.create_model(name, **{**sizes, **options})), sizes


def timm_features(model):
    with torch.no_grad():
        return model.double().head(model.forward_features(images().double())[:, 1:])


@pytest.mark.parametrize("quick", [False, True], ids=["gelu", "quick_gelu"])
def test_timm_folder(tmp_path, quick):
    name = "vit_base_patch16_clip_quickgelu_224" if quick else "vit_base_patch16_clip_224"
    model, sizes = timm_model(name)
    nn.init.zeros_(model.head.bias)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": name, "model_args": sizes, "pretrained_cfg": {"tag": "laion2b"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    check(load(tmp_path), timm_features(model))


def test_timm_file_spelled_out(tmp_path):
    model, _ = timm_model(embed_dim=128)
    nn.init.zeros_(model.head.bias)
    path = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), path)
    check(load(f"timm/vit_base_patch16_clip_224.laion2b:{path}"), timm_features(model))


def test_openai_weights_from_timm_keep_quick_gelu(tmp_path):
    """timm also lists OpenAI's towers with the exact GELU, which they were not trained with."""
    model, _ = timm_model("vit_base_patch16_clip_quickgelu_224", embed_dim=128)
    nn.init.zeros_(model.head.bias)
    path = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), path)
    check(load(f"timm/vit_base_patch16_clip_224.openai:{path}"), timm_features(model))


def test_timm_classifier_is_no_projection(tmp_path):
    model, _ = timm_model(embed_dim=128)
    assert model.head.bias.any()
    path = tmp_path / "vit_clip.safetensors"
    save_file(model.state_dict(), path)
    with torch.no_grad():
        expected = model.double().forward_features(images().double())[:, 1:]
    check(load(path), expected, (16, 128))
