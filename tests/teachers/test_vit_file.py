"""Vision transformers by folder or bare file give their own library's features."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from eva_fast.errors import UsageError
from eva_fast.layers.inputs import IMAGENET_MEAN, IMAGENET_STD
from eva_fast.model import create_model
from eva_fast.teachers import load_teacher
from eva_fast.teachers.vit import VitTeacher
from eva_fast.weights import naming, write_student
from tests.teachers.backbones import pixels
from tests.weights.networks import random_, same

transformers = pytest.importorskip("transformers")
timm = pytest.importorskip("timm")
transformers.logging.set_verbosity_error()

SIZES = dict(
    hidden_size=66, num_hidden_layers=3, num_attention_heads=3, image_size=48, patch_size=12
)
HALF = (0.5, 0.5, 0.5)


def normalised(images, mean=HALF, std=HALF):
    return (images / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def hf(kind, **options):
    """A model of transformers with numbers of its own."""
    config = {
        "siglip": transformers.SiglipVisionConfig,
        "siglip model": transformers.SiglipVisionConfig,
        "dinov2": transformers.Dinov2Config,
        "registers": transformers.Dinov2WithRegistersConfig,
        "vit": transformers.ViTConfig,
        "vit classifier": transformers.ViTConfig,
        "deit": transformers.DeiTConfig,
    }[kind](
        **{
            **SIZES,
            **({} if "dino" in kind or kind == "registers" else {"intermediate_size": 150}),
            **options,
        }
    )
    model = {
        "siglip": transformers.SiglipVisionModel,
        "dinov2": transformers.Dinov2Model,
        "registers": transformers.Dinov2WithRegistersModel,
        "vit": transformers.ViTModel,
        "vit classifier": transformers.ViTForImageClassification,
        "deit": transformers.DeiTModel,
    }  # fmt: skip
    if kind == "siglip model":
        text = dict(
            hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
        )
        both = transformers.SiglipConfig(
            vision_config=config.to_dict(), text_config={**text, "vocab_size": 10}
        )
        return random_(transformers.SiglipModel(both))
    return random_(model[kind](config))


PREFIX = {
    "siglip": 0,
    "siglip model": 0,
    "dinov2": 1,
    "registers": 5,
    "vit": 1,
    "vit classifier": 1,
    "deit": 2,
}
IMAGENETS = ("dinov2", "registers")


@torch.no_grad()
def features(model, kind, images):
    tower = getattr(model, "vision_model", getattr(model, "vit", model))
    statistics = (IMAGENET_MEAN, IMAGENET_STD) if kind in IMAGENETS else (HALF, HALF)
    return tower(normalised(images, *statistics)).last_hidden_state[:, PREFIX[kind] :]


@pytest.mark.parametrize("kind", PREFIX)
@pytest.mark.parametrize("bare", [False, True], ids=["folder", "bare file"])
def test_hugging_face(tmp_path, kind, bare, caplog):
    model = hf(kind, **(dict(hidden_size=128, num_attention_heads=2) if bare else {}))
    model.save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved"
    if bare:
        path = tmp_path / "weights.safetensors"
        (tmp_path / "saved" / "model.safetensors").rename(path)
    images = pixels((48, 48))
    with caplog.at_level(logging.WARNING, "eva_fast"):
        teacher = load_teacher(path)
    assert isinstance(teacher, VitTeacher) and teacher.grid == (4, 4)
    expected = features(model, kind, images)
    close(teacher(images), expected)
    index = torch.tensor([[0, 3, 15], [1, 14, 15]], dtype=torch.int32)
    rows = torch.stack([expected[b, i] for b, i in enumerate(index.long())]).flatten(0, 1)
    close(teacher(images, index), rows)
    assert "assuming" in caplog.text and ("activation" in caplog.text) == bare


@pytest.mark.parametrize("gelu", ["gelu", "gelu_pytorch_tanh", "quick_gelu"])
@pytest.mark.parametrize("kind", ["siglip", "registers"])
def test_the_configuration_decides(tmp_path, kind, gelu, caplog):
    """Kind of GELU, epsilon, normalisation."""
    model = hf(kind, hidden_act=gelu, layer_norm_eps=1e-2)
    model.save_pretrained(tmp_path)
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(statistics))
    images = pixels((48, 48))
    with caplog.at_level(logging.WARNING, "eva_fast"):
        teacher = load_teacher(tmp_path)
    with torch.no_grad():
        tower = getattr(model, "vision_model", model)
        expected = tower(normalised(images, *statistics.values())).last_hidden_state
    close(teacher(images), expected[:, PREFIX[kind] :])
    assert not caplog.text


@pytest.mark.parametrize("kind", ["siglip", "registers"])
def test_in_sixteen_bits(tmp_path, kind):
    """Masked rows are those of all patches, and near what the library gives in 32 bits."""
    model = hf(kind)
    model.save_pretrained(tmp_path)
    teacher, images = load_teacher(tmp_path, dtype=torch.bfloat16), pixels((48, 48))
    expected = features(model, kind, images)
    assert (teacher(images) - expected).abs().mean() < 0.02 * expected.abs().mean()
    index = torch.tensor([[2, 9], [0, 15]], dtype=torch.int32)
    rows = torch.cat([expected[b, i] for b, i in enumerate(index.long())])
    assert (teacher(images, index) - rows).abs().mean() < 0.02 * rows.abs().mean()


def test_shards_and_pickles(tmp_path):
    model = hf("registers")
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    model.save_pretrained(tmp_path / "one")
    torch.save(load_file(tmp_path / "one" / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "one" / "config.json").rename(tmp_path / "config.json")
    images = pixels((48, 48))
    for folder in (tmp_path / "shards", tmp_path):
        close(load_teacher(folder)(images), features(model, "registers", images))


def test_another_grid(tmp_path):
    """As transformers resizes the positions of DINOv2 with registers, antialiased."""
    model = hf("registers")
    model.save_pretrained(tmp_path)
    teacher = load_teacher(tmp_path, grid=(3, 5))
    assert teacher.input_size == (36, 60)
    images = pixels((36, 60))
    close(teacher(images), features(model, "registers", images))


def dinov2(registers):
    """timm's DINOv2, whose features are the authors' own, and its weights under their names."""
    kind = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    model = random_(timm.create_model(kind, depth=2, img_size=56, num_classes=0))
    state = {**model.state_dict(), "mask_token": torch.zeros(1, 384)}
    if registers:
        state["register_tokens"] = state.pop("reg_token")
        place = torch.randn(1, 1, 384)  # timm adds it to the class token
        state["cls_token"] = state["cls_token"] - place
        state["pos_embed"] = torch.cat([place, state["pos_embed"]], 1)
    return model, state


@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
@pytest.mark.parametrize("registers", [False, True], ids=["plain", "registers"])
def test_dinov2_by_its_authors(tmp_path, registers, prefix):
    model, state = dinov2(registers)
    path = tmp_path / "dinov2_vits14_pretrain.pth"
    torch.save({prefix + name: value for name, value in state.items()}, path)
    images = pixels((56, 56))
    with torch.no_grad():
        expected = model.forward_features(normalised(images, IMAGENET_MEAN, IMAGENET_STD))
    close(load_teacher(path)(images), expected[:, 1 + 4 * registers :])


TIMM = {
    "vit": ("vit_tiny_patch16_224", dict(img_size=48, num_classes=5)),
    "no class token": (
        "vit_tiny_patch16_224",
        dict(img_size=48, class_token=False, global_pool="avg", fc_norm=False),
    ),
    "registers": ("vit_small_patch14_reg4_dinov2", dict(img_size=56)),
    "distilled": ("deit_tiny_distilled_patch16_224", dict(img_size=48)),
    "patch 32, layer scale": ("vit_tiny_patch16_224", dict(img_size=96, patch_size=32, init_values=0.1)),
}  # fmt: skip


@pytest.mark.parametrize("kind, options", TIMM.values(), ids=TIMM)
@pytest.mark.parametrize("module", [False, True], ids=["plain", "DataParallel"])
def test_timm_without_a_name(tmp_path, kind, options, module, caplog):
    """Neither the file's name nor a configuration says which model it is."""
    model = random_(timm.create_model(kind, depth=2, **options))
    state = {("module." if module else "") + k: v for k, v in model.state_dict().items()}
    save_file(state, tmp_path / "mine.safetensors")
    with caplog.at_level(logging.WARNING, "eva_fast"):
        teacher = load_teacher(tmp_path / "mine.safetensors")
    size = options["img_size"]
    images = pixels((size, size))
    scaled = "ls1" in " ".join(state)
    statistics = (IMAGENET_MEAN, IMAGENET_STD) if scaled else (HALF, HALF)
    with torch.no_grad():
        expected = model.forward_features(normalised(images, *statistics))
    close(teacher(images), expected[:, model.num_prefix_tokens :])
    assert "timm/NAME:FILE" in caplog.text


def test_the_timm_tower_of_an_open_clip_file(tmp_path, caplog):
    """SigLIP as open_clip saves it; its configuration says how images are normalised."""
    options = dict(depth=2, img_size=48, patch_size=12, num_classes=0, act_layer="gelu_tanh")
    model = random_(timm.create_model("vit_base_patch16_siglip_224", **options))
    state = {f"visual.trunk.{name}": value for name, value in model.state_dict().items()}
    state["text.token_embedding.weight"] = torch.zeros(3, 4)
    save_file(state, tmp_path / "open_clip_model.safetensors")
    statistics = dict(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"preprocess_cfg": statistics}))
    images = pixels((48, 48))
    teacher = load_teacher(tmp_path)
    with torch.no_grad():
        expected = model.forward_features(normalised(images, *statistics.values()))
    close(teacher(images), expected)
    assert "assuming activation gelu_tanh. A config.json" in caplog.text


def test_timm_folder_is_timms_own(tmp_path):
    """With a configuration the library itself builds and runs it."""
    model = random_(timm.create_model("vit_tiny_patch16_224", depth=2, img_size=48))
    timm.models.save_for_hf(model, tmp_path)
    images = pixels((48, 48))
    config = model.pretrained_cfg
    with torch.no_grad():
        expected = model.forward_features(normalised(images, config["mean"], config["std"]))[:, 1:]
    close(load_teacher(tmp_path)(images), expected)


def test_a_student_of_ones_own(tmp_path, caplog):
    """Its heads and normalisation are known."""
    sizes = dict(img_size=48, patch_size=12, embed_dim=66, depth=2, num_heads=3, mlp_hidden=150)
    student = random_(create_model(**sizes, predict_dim=7))
    write_student(student, tmp_path / "model.safetensors")
    teacher = load_teacher(tmp_path)
    images = pixels((48, 48))
    close(teacher(images), student.forward_features(images)[:, 1:])
    assert "assuming" not in caplog.text


@pytest.mark.parametrize("kind", ["dinov2", "registers"])
def test_gated_mlps(tmp_path, kind):
    """SwiGLU, as in DINOv2's giant: transformers' own names."""
    model = hf(kind, use_swiglu_ffn=True)
    model.save_pretrained(tmp_path)
    images = pixels((48, 48))
    close(load_teacher(tmp_path)(images), features(model, kind, images))


@pytest.mark.parametrize("authors", [False, True], ids=["timm", "DINOv2's authors"])
def test_gated_mlps_without_a_name(tmp_path, authors):
    options = dict(depth=2, embed_dim=64, num_heads=1, img_size=56, num_classes=0, mlp_ratio=4)
    model = random_(timm.create_model("vit_giant_patch14_dinov2", **options))
    state = dict(model.state_dict())
    if authors:
        state = {n.replace("fc1", "w12").replace("fc2", "w3"): t for n, t in state.items()}
        state["mask_token"] = torch.zeros(1, 64)
    save_file(state, tmp_path / "mine.safetensors")
    images = pixels((56, 56))
    with torch.no_grad():
        expected = model.forward_features(normalised(images, IMAGENET_MEAN, IMAGENET_STD))[:, 1:]
    close(load_teacher(tmp_path / "mine.safetensors")(images), expected)


def test_metadata_that_is_no_sizes(tmp_path):
    student = create_model("eva_ti_patch16_32", depth=1, predict_dim=7).state_dict()
    for sizes in ("{", "[]", "{}", '{"num_heads": "many"}'):
        save_file(student, tmp_path / "x.safetensors", {"sizes": sizes})
        with pytest.raises(UsageError, match="`sizes` in its metadata"):
            load_teacher(tmp_path / "x.safetensors")


LAYERS = ("patch_embed.proj", "blocks.0.mlp.fc1", "blocks.0.attn.qkv", "norm")


@pytest.mark.parametrize(
    "name", ["pos_embed", "cls_token", "blocks.1.ls1.gamma", *(f"{n}.weight" for n in LAYERS)]
)
@pytest.mark.parametrize("shape", [(), (1, 4, 7)], ids=str)
def test_tensors_of_wrong_shapes_are_named(tmp_path, name, shape):
    """Never by a fault of the program, and by their own names."""
    _, state = dinov2(registers=True)
    state[name] = torch.zeros(shape)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(UsageError, match=name.rpartition(".")[0] or name):
        load_teacher(tmp_path / "x.pth")


def test_two_networks_in_a_file_are_not_guessed_about(tmp_path):
    """A checkpoint of self-distillation holds a student and a teacher."""
    _, state = dinov2(registers=True)
    both = {f"{which}.{k}": v for which in ("student", "teacher") for k, v in state.items()}
    torch.save(both, tmp_path / "checkpoint.pth")
    with pytest.raises(UsageError, match=r"holds several networks \(student\., teacher\.\)"):
        load_teacher(tmp_path / "checkpoint.pth")


def test_what_does_not_fit_is_named(tmp_path):
    model = hf("vit")
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    del state["encoder.layer.1.layernorm_before.bias"]
    save_file({**state, "embeddings.extra": torch.zeros(2)}, path)
    with pytest.raises(
        UsageError, match=r"missing 1: blocks\.1\.norm1\.bias; unknown 1: embeddings"
    ):
        load_teacher(tmp_path)


HEADS = ("head.", "vision_model.head.", "classifier.", "logit", "text_model.")
UNREAD = ("mask_token", "pooler")


@pytest.mark.parametrize("kind", PREFIX)
def test_the_tables_go_both_ways(tmp_path, kind):
    """What is written again is what the file held, but for heads and what only pre-training needs."""
    hf(kind).save_pretrained(tmp_path)
    file = load_file(tmp_path / "model.safetensors")
    names, prefix = naming.find(file, naming.VIT)
    back = names.under(prefix, names.library).write(names.read(file, prefix))
    same(
        back,
        {
            k: v
            for k, v in file.items()
            if not k.startswith(HEADS) and not any(u in k for u in UNREAD)
        },
    )


def test_both_tables_of_dinov2_and_of_students(tmp_path):
    _, state = dinov2(registers=True)
    names = naming.vit.DINOV2
    assert naming.find(state, naming.VIT) == (names, "")
    same(names.write(names.read(state, "")), {k: v for k, v in state.items() if k != "mask_token"})
    student = random_(create_model("eva_ti_patch16_32", depth=1, predict_dim=7)).state_dict()
    names = naming.vit.EVA
    assert naming.find(student, naming.VIT) == (names, "")
    back = names.write(names.read(student, ""))
    same(back, {k: v for k, v in student.items() if k != "mask_token" and "lm_head" not in k})
