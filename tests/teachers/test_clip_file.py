"""Every library's weights give that library's own features."""

import json
import logging

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from eva_fast.teachers import load_teacher
from eva_fast.teachers.base import CLIP_MEAN, CLIP_STD
from tests.teachers.openai_tower import Clip, randomise

BATCH, TOLERANCE = 2, dict(atol=3e-5, rtol=1e-5)  # weights pass through float32
SIZES = dict(size=48, patch=12, width=176, heads=2, layers=2, hidden=300, dim=24)


def images(size=48):
    return torch.randn(BATCH, 3, size, size, generator=torch.Generator().manual_seed(1))


def check(teacher, expected, shape=(16, 24)):
    assert tuple(expected.shape) == (BATCH, *shape)
    torch.testing.assert_close(teacher(images()), expected, **TOLERANCE)


def load(path, **options):
    return load_teacher(path, dtype=torch.float64, **options)


# OpenAI ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gelu", ["quick", "exact"])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_openai_torchscript(tmp_path, gelu, half):
    from tests.teachers.openai_tower import QuickGELU

    model = randomise(Clip(**SIZES, gelu=QuickGELU if gelu == "quick" else nn.GELU))
    model = model.half() if half else model
    torch.jit.script(model).save(tmp_path / "ViT-tiny.pt")
    teacher = load(tmp_path / "ViT-tiny.pt")
    assert teacher.tower.config.heads == 2  # 176 / 64 would be no whole number: read from the file
    with torch.no_grad():
        check(teacher, model.double()(images().double()))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_openai_traced(tmp_path):
    """A trace keeps no Python attributes: heads follow from the width, QuickGELU from the kind."""
    model = randomise(Clip(**{**SIZES, "width": 128}))
    torch.jit.trace(model, images()).save(tmp_path / "ViT-tiny.pt")
    with torch.no_grad():
        check(load(tmp_path / "ViT-tiny.pt"), model.double()(images().double()))


def test_openai_on_another_storage_layout(tmp_path):
    """A tensor that is a view into a shared storage is read with its offset and strides."""
    model = randomise(Clip(**SIZES))
    visual = model.visual
    shared = torch.randn(24, 176 + 3)
    visual.proj = nn.Parameter(shared[:, 3:].T)
    torch.jit.script(model).save(tmp_path / "views.pt")
    with torch.no_grad():
        check(load(tmp_path / "views.pt"), model.double()(images().double()))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("nested", [False, True], ids=["plain", "checkpoint"])
def test_openai_state_dict(tmp_path, legacy, nested):
    sizes = {**SIZES, "width": 128, "heads": 2}
    model = randomise(Clip(**sizes))
    state = model.state_dict()
    if nested:
        state = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}
    path = tmp_path / "clip.pt"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    with torch.no_grad():
        check(load(path), model.double()(images().double()))


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


# All ---------------------------------------------------------------------------------------------


def tower_state(**changes):
    model = randomise(Clip(**{**SIZES, "width": 128, **changes}))
    return {k: v.clone() for k, v in model.state_dict().items() if k.startswith("visual.")}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("visual.ln_post.weight"), "missing 1: ln_post.weight"),
        (lambda s: s.pop("visual.conv1.weight"), "lacks 'conv1.weight'"),
        (lambda s: s.pop("visual.positional_embedding"), "positional_embedding"),
        (
            lambda s: s.update({"visual.transformer.resblocks.0.ls_1.gamma": torch.ones(128)}),
            "unknown 1: transformer.resblocks.0.ls_1.gamma",
        ),
        (lambda s: s.update({"visual.ln_pre.bias": torch.ones(5)}), r"ln_pre.bias is \[5\]"),
        (lambda s: s.update({"visual.positional_embedding": torch.ones(8, 128)}), "7 patches"),
        (lambda s: s.update({"visual.conv1.weight": torch.ones(128, 3, 12, 13)}), "convolution"),
    ],
    ids=["missing", "no_conv", "no_pos", "layer_scale", "shape", "not_square", "conv"],
)
def test_wrong_keys(tmp_path, change, message):
    state = tower_state()
    change(state)
    save_file(state, tmp_path / "tower.safetensors")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "tower.safetensors")


def test_unknown_heads(tmp_path):
    save_file(tower_state(width=176), tmp_path / "tower.safetensors")
    with pytest.raises(ValueError, match="number of heads is unknown.*num_attention_heads"):
        load(tmp_path / "tower.safetensors")
    for heads, message in (("3", "3 heads"), ("x", "no whole number")):
        save_file(tower_state(width=176), tmp_path / "bad.safetensors", {"heads": heads})
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "bad.safetensors")


def test_hugging_face_without_a_key_projection(tmp_path):
    transformers, config = hf_config()
    model = transformers.CLIPVisionModelWithProjection(config)
    state = {k: v for k, v in model.state_dict().items() if "layers.1.self_attn.k_proj.b" not in k}
    model.save_pretrained(tmp_path)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing .*layers\.1\.self_attn\.k_proj\.bias"):
        load(tmp_path)


@pytest.mark.parametrize(
    "state, message",
    [
        ({"visual.layer1.0.conv1.weight": torch.ones(1)}, "CLIP ResNet"),
        ({"visual.trunk.blocks.0.attn.qkv.weight": torch.ones(1)}, "timm/NAME:FILE"),
        ({"a.b": torch.ones(1), "c": torch.ones(1)}, "its keys: a.b, c.*vision_model"),
    ],
    ids=["resnet", "timm_tower", "other"],
)
def test_other_networks(tmp_path, state, message):
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "weights.safetensors")


def test_unsuitable_configurations(tmp_path):
    save_file(tower_state(), tmp_path / "open_clip_model.safetensors")
    config = tmp_path / "open_clip_config.json"
    for text, message in (
        ("{", "no valid JSON"),
        ("[]", "JSON object"),
        ('{"model_cfg": {"vision_cfg": {"timm_model_name": "x"}}}', "timm_model_name"),
        ('{"model_cfg": {"vision_cfg": {"layers": [3, 4]}}}', "ResNet"),
        ('{"preprocess_cfg": {"mean": [1]}}', "three numbers"),
    ):
        config.write_text(text)
        with pytest.raises(ValueError, match=message):
            load(tmp_path)
    config.unlink()
    (tmp_path / "config.json").write_text('{"hidden_act": "relu", "num_attention_heads": 2}')
    with pytest.raises(ValueError, match="quick_gelu or gelu, not 'relu'"):
        load(tmp_path)
