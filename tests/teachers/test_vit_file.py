"""Vision transformers by folder or bare file give their own library's features."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from eva_fast.errors import UsageError
from eva_fast.model import create_model
from eva_fast.teachers import load_teacher
from eva_fast.teachers.vit import VitTeacher
from eva_fast.weights import write_student
from tests.teachers.backbones import pixels
from tests.teachers.vits import PREFIX, close, dinov2, features, hf, normalised
from tests.weights.networks import random_


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
