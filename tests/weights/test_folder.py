"""Folders and shards, as Hugging Face, open_clip and timm save them."""

import json

import pytest
import torch
from safetensors.torch import save_file

from eva_fast.weights import read
from eva_fast.weights.folder import WEIGHT_FILES


def tensors():
    generator = torch.Generator().manual_seed(0)
    return {f"layer.{i}.weight": torch.randn(4, 3, generator=generator) for i in range(5)}


def save(path, state):
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)


def in_shards(folder, stem, suffix, index=None):
    """`tensors` in two files and their index, as transformers names them."""
    state, table = tensors(), {}
    for number, names in enumerate((list(state)[:2], list(state)[2:]), 1):
        name = f"{stem}-0000{number}-of-00002{suffix}"
        save(folder / name, {k: state[k] for k in names})
        table |= dict.fromkeys(names, name)
    path = folder / (index or f"{stem}{suffix}.index.json")
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": table}))
    return path


@pytest.mark.parametrize(
    "stem, suffix",
    [("model", ".safetensors"), ("pytorch_model", ".bin"), ("open_clip_model", ".safetensors")],
)
def test_shards(tmp_path, stem, suffix):
    index = in_shards(tmp_path, stem, suffix)
    for path in (tmp_path, index, str(index)):
        found = read(path)
        assert found.path == index and list(found) == list(tensors())
        assert all(torch.equal(found[name], value) for name, value in tensors().items())


def test_transformers_own_shards(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        image_size=8, patch_size=4,
    )  # fmt: skip
    model = transformers.ViTModel(config, add_pooling_layer=False)
    model.save_pretrained(tmp_path, max_shard_size="6KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    found = read(tmp_path)
    assert sum(found[name].numel() for name in found) == model.num_parameters()


def test_shards_with_the_prefix_of_data_parallel(tmp_path):
    path = in_shards(tmp_path, "model", ".safetensors")
    table = json.loads(path.read_text())["weight_map"]
    for shard in set(table.values()):
        part = {f"module.{k}": v for k, v in tensors().items() if table[k] == shard}
        save_file(part, tmp_path / shard)
    path.write_text(json.dumps({"weight_map": {f"module.{k}": v for k, v in table.items()}}))
    assert set(read(path)) == set(tensors())


def test_what_an_index_promises(tmp_path):
    path = in_shards(tmp_path, "model", ".safetensors")
    table = json.loads(path.read_text())["weight_map"]
    path.write_text(
        json.dumps({"weight_map": {**table, "layer.9.weight": table["layer.0.weight"]}})
    )
    with pytest.raises(ValueError, match=r"lists tensors that its files lack: layer\.9\.weight"):
        read(tmp_path)
    path.write_text(json.dumps({"weight_map": table}))
    (tmp_path / table["layer.4.weight"]).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"model-00002-of-00002\.safetensors does not exist"
    ):
        read(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_no_index(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match="no index of weight files"):
        read(tmp_path)


def test_shards_lie_beside_their_index(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    save_file(tensors(), tmp_path / "x.safetensors")
    (inside / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "../x.safetensors"}}'
    )
    with pytest.raises(FileNotFoundError, match="inside/x.safetensors"):
        read(inside)


def test_the_preferred_file_of_a_folder(tmp_path):
    for name in ("pytorch_model.bin", "model.safetensors", "open_clip_model.safetensors"):
        save(tmp_path / name, tensors())
        assert read(tmp_path).path.name == name
    for name in WEIGHT_FILES:
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(
        FileNotFoundError, match="holds no weight file; expected one weight file or"
    ):
        read(tmp_path)
    save(tmp_path / "mine.pth", tensors())
    assert read(tmp_path).path.name == "mine.pth"
    save(tmp_path / "other.pt", tensors())
    with pytest.raises(FileNotFoundError, match=r"holds mine\.pth, other\.pt; expected"):
        read(tmp_path)
