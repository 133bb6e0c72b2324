"""Weights out of a run, finished or not."""

import pytest
import torch
from safetensors.torch import load_file

import eva_fast
from eva_fast.errors import UsageError
from eva_fast.evaluate.students import load_student
from eva_fast.recipes.export import export_weights

TINY = dict(
    data="builtin", model="eva_ti_patch8_32", embed_dim=32, depth=1, num_heads=4, mlp_hidden=48,
    batch_size=8, workers=0, device="cpu", kernels="torch", progress=False,
)  # fmt: skip


def test_run_file_and_checkpoint_give_the_same_weights(tmp_path):
    run = eva_fast.pretrain(out=tmp_path / "run", steps=2, **TINY)
    expected = load_file(run.weights)
    for source in (run.out, run.weights, run.checkpoint):
        found = load_file(export_weights(source, tmp_path / "deep" / "out.safetensors"))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[k], expected[k]) for k in expected)
    run.weights.unlink()  # as in a run that has not ended
    found = load_file(export_weights(run.out, tmp_path / "again.safetensors"))
    assert all(torch.equal(found[k], expected[k]) for k in expected)
    (run.checkpoint / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="damaged"):
        export_weights(run.checkpoint, tmp_path / "never.safetensors")
    assert not (tmp_path / "never.safetensors").exists()


def test_nothing_to_export(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a run's folder, or the run has not ended"):
        export_weights(tmp_path, tmp_path / "x.safetensors")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match="neither final weights nor a whole checkpoint"):
        export_weights(tmp_path, tmp_path / "x.safetensors")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        export_weights(tmp_path / "nowhere", tmp_path / "x.safetensors")


def test_another_librarys_folder(tmp_path):
    """Heads, which no shape shows, come from its config.json."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        image_size=32, patch_size=8, layer_norm_eps=1e-6,
    )  # fmt: skip
    theirs = transformers.ViTModel(config, add_pooling_layer=False).eval()
    theirs.save_pretrained(tmp_path / "vit")
    file = export_weights(tmp_path / "vit", tmp_path / "out.safetensors")
    ours = load_student(file, torch.device("cpu"))
    assert ours.sizes.num_heads == 4
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = theirs(images).last_hidden_state
        torch.testing.assert_close(ours.forward_features(images), expected, atol=1e-5, rtol=1e-5)


def test_a_student_that_is_a_part_of_what_was_trained(tmp_path):
    """Whatever else an objective trains, the student is known by its names."""
    from torch import nn

    from eva_fast.objectives import Objective

    class Wrapped(nn.Module):
        def __init__(self, student):
            super().__init__()
            self.inner = nn.ModuleDict({"student": student, "extra": nn.Linear(32, 1)})

    class Length(Objective):
        name = "length"

        def build(self, setting, teacher):
            return Wrapped(setting.student(predict_dim=3))

        def loss(self, module, batch, target):
            tokens = module.inner["student"].forward_features(batch.images)
            return module.inner["extra"](tokens).square().mean(), {}

        def exported(self, module):
            return module.inner["student"]

    run = eva_fast.pretrain(out=tmp_path / "run", steps=2, objective=Length, **TINY)
    expected = load_file(run.weights)
    found = load_file(export_weights(run.checkpoint, tmp_path / "x.safetensors"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], expected[k]) for k in expected)


def test_a_place_that_cannot_be_written_to_is_wrong_use(tmp_path):
    run = eva_fast.pretrain(out=tmp_path / "run", steps=1, **TINY)
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "out.safetensors", tmp_path / ("x" * 250)):
        with pytest.raises(UsageError, match="cannot write .* choose another out="):
            export_weights(run.weights, place)
