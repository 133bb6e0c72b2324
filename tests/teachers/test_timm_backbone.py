"""timm's networks as teachers, against their own forward passes."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file

from eva_fast import native
from eva_fast.ops import choose
from eva_fast.planning.counter import Recorder
from eva_fast.teachers import load_teacher
from tests.teachers.backbones import close, pixels
from tests.teachers.openai_tower import randomise

TINY = json.dumps({"architecture": "vit_tiny_patch16_224", "model_args": {"depth": 2}})


def timm_file(folder, name, **options):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = randomise(timm.create_model(name, **options))
    path = folder / "weights.safetensors"
    save_file(model.state_dict(), path)
    return model, path


def timm_normalised(model, images):
    config = model.pretrained_cfg
    mean, std = (torch.tensor(config[k]).view(3, 1, 1) for k in ("mean", "std"))
    return (images / 255 - mean) / std


def test_timm_convolutional_network(tmp_path):
    model, path = timm_file(tmp_path, "mobilenetv3_small_050")
    teacher = load_teacher(f"timm/mobilenetv3_small_050:{path}", grid=(2, 3))
    assert teacher.input_size == (64, 96)
    images = pixels((64, 96))
    with torch.no_grad():
        expected = model.forward_features(timm_normalised(model, images))
    close(teacher(images), expected.flatten(2).transpose(1, 2))


@pytest.mark.parametrize(
    "name, prefix", [("vit_tiny_patch16_224", 1), ("deit_tiny_distilled_patch16_224", 2)]
)
def test_timm_transformer_at_both_sizes(tmp_path, name, prefix):
    model, _ = timm_file(tmp_path, name, depth=2)
    config = {"architecture": name, "model_args": {"depth": 2}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for grid, size in ((None, 224), (4, 64)):
        teacher = load_teacher(tmp_path, grid=grid)
        assert teacher.input_size == (size, size) and teacher.dim == 192
        if size != 224:
            model.set_input_size(img_size=(size, size))
        images = pixels((size, size))
        with torch.no_grad():
            expected = model.forward_features(timm_normalised(model, images))[:, prefix:]
        close(teacher(images), expected)


def test_linears_run_on_the_products_that_are_raced(tmp_path):
    """A ConvNeXt's MLPs, whose numbers are the same by either product."""
    options = {"conv_mlp": False, "depths": [1, 1, 1, 1]}
    model, _ = timm_file(tmp_path, "convnext_atto", **options)
    config = {"architecture": "convnext_atto", "model_args": options}
    (tmp_path / "config.json").write_text(json.dumps(config))
    teacher = load_teacher(tmp_path, grid=2)
    images = pixels((64, 64))
    with torch.no_grad():
        expected = model.forward_features(timm_normalised(model, images))
    for family in ("native", "torch"):
        if family == "native" and native.library() is None:
            continue
        choose.force("gemm", family)
        try:
            with Recorder() as recorder:
                found = teacher(images)
        finally:
            choose.force("gemm")
        close(found, expected.flatten(2).transpose(1, 2))
        assert "eva_fast::gemm" in {operator.name for operator in recorder.operators}


def test_timm_channels_last_network(tmp_path):
    name = "swin_tiny_patch4_window7_224"
    options = dict(depths=(1, 1, 1, 1), embed_dim=24, num_heads=(1, 2, 3, 4))
    model, _ = timm_file(tmp_path, name, **options)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name, "model_args": options}))
    teacher = load_teacher(tmp_path)
    assert (teacher.grid, teacher.dim) == ((7, 7), 192)
    images = pixels((224, 224))
    with torch.no_grad():
        expected = model.forward_features(timm_normalised(model, images)).flatten(1, 2)
    close(teacher(images), expected)


def test_timm_file_named_after_its_model(tmp_path):
    _, path = timm_file(tmp_path, "mobilenetv3_small_050")
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()[:8]
    named = tmp_path / f"mobilenetv3_small_050_lamb-{digest}.safetensors"
    named.write_bytes(data)
    images = pixels((32, 32))
    expected = load_teacher(f"timm/mobilenetv3_small_050:{path}", grid=2)(images)
    assert torch.equal(load_teacher(named, grid=2)(images), expected)


def test_a_configuration_timm_cannot_build(tmp_path):
    timm_file(tmp_path, "vit_tiny_patch16_224", depth=1)
    config = {"architecture": "vit_tiny_patch16_224", "model_args": {"nonsense": 2}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="timm cannot build vit_tiny_patch16_224 with .*nonsense"):
        load_teacher(tmp_path)


@pytest.mark.parametrize(
    "prefix", ["module.", "visual.trunk.", "module.visual.trunk.", "backbone."]
)
def test_timm_names_behind_a_prefix(tmp_path, prefix):
    """As DistributedDataParallel and open_clip save them, other towers and heads beside them."""
    model, path = timm_file(tmp_path, "vit_tiny_patch16_224", depth=2, num_classes=0)
    (tmp_path / "config.json").write_text(TINY)
    images = pixels((32, 32))
    expected = load_teacher(tmp_path, grid=2)(images)
    state = {prefix + name: value for name, value in model.state_dict().items()}
    if "trunk" in prefix:
        outer = prefix.removesuffix("visual.trunk.")
        state[f"{outer}visual.head.proj.weight"] = torch.zeros(4, 192)
        state[f"{outer}text.token_embedding.weight"] = torch.zeros(3, 4)
    save_file(state, path)
    assert torch.equal(load_teacher(tmp_path, grid=2)(images), expected)


def test_the_advice_about_open_clips_timm_towers_is_right(tmp_path):
    name = "mobilenetv3_small_050"  # a vision transformer needs no advice
    model, path = timm_file(tmp_path, name, num_classes=0)
    save_file({f"visual.trunk.{k}": v for k, v in model.state_dict().items()}, path)
    with pytest.raises(ValueError, match="by timm/NAME:FILE"):
        load_teacher(path, grid=2)
    assert load_teacher(f"timm/{name}:{path}", grid=2).dim == 288


def test_two_networks_in_a_file_are_not_guessed_about(tmp_path):
    model, path = timm_file(tmp_path, "vit_tiny_patch16_224", depth=2, num_classes=0)
    (tmp_path / "config.json").write_text(TINY)
    names = [f"{which}.{k}" for which in ("student", "teacher") for k in model.state_dict()]
    save_file({n: model.state_dict()[n.partition(".")[2]].clone() for n in names}, path)
    with pytest.raises(ValueError, match="does not fit vit_tiny_patch16_224: lacks"):
        load_teacher(tmp_path, grid=2)


@pytest.mark.parametrize("kind", ["vit_small_patch14_reg4_dinov2", "vit_small_patch14_dinov2"])
def test_dinov2_in_its_authors_names(tmp_path, kind):
    """Registers, a mask token and a position for the class token: timm's own loading converts them."""
    options = dict(depth=2, img_size=56, num_classes=0)
    model, path = timm_file(tmp_path, kind, **options)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": kind, "model_args": options}))
    images = pixels((56, 56))
    expected = load_teacher(tmp_path)(images)
    state = model.state_dict() | {"mask_token": torch.zeros(1, 384)}
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
        place = torch.randn(1, 1, 384)  # timm adds it to the class token
        state["cls_token"] = state["cls_token"] - place
        state["pos_embed"] = torch.cat([place, state["pos_embed"]], 1)
    save_file(state, path)
    close(load_teacher(tmp_path)(images), expected)


def test_what_timm_would_load_with_another_meaning_is_refused(tmp_path):
    """timm moves a pre-trained student's last norm behind a mean, where no patch feature sees it."""
    options = dict(depth=1, embed_dim=64, num_heads=2, img_size=28, num_classes=0)
    timm_file(tmp_path, "eva_giant_patch14_224", **options, global_pool="token")
    name = "eva_giant_patch14_224"
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name, "model_args": options}))
    with pytest.raises(ValueError, match=r"does not fit eva_giant_patch14_224: .*norm\.weight"):
        load_teacher(tmp_path)


@pytest.mark.parametrize("name", ["pit_ti_224", "volo_d1_224", "swin_tiny_patch4_window7_224"])
def test_maps_that_timm_alone_knows_how_to_cut_out(tmp_path, name):
    model, path = timm_file(tmp_path, name, num_classes=0)
    teacher = load_teacher(f"timm/{name}:{path}")
    images = pixels((224, 224))
    with torch.no_grad():
        expected = model.forward_intermediates(
            timm_normalised(model, images), indices=1, norm=True, intermediates_only=True
        )[-1]
    assert teacher.grid == tuple(expected.shape[-2:])
    close(teacher(images), expected.flatten(2).transpose(1, 2))
