"""Weights out of a run, finished or not."""

import typing

import pytest
import torch
from safetensors.torch import load_file

import eva_fast
from eva_fast import cli, weights
from eva_fast.baselines import OfficialViT
from eva_fast.errors import UsageError
from eva_fast.evaluation.students import load_student
from eva_fast.recipes.export import export

TINY = dict(
    data="builtin", model="eva_ti_patch8_32", embed_dim=32, depth=1, num_heads=4, mlp_hidden=48,
    batch_size=8, workers=0, device="cpu", kernels="torch", progress=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return eva_fast.pretrain(out=tmp_path_factory.mktemp("run") / "run", steps=1, **TINY)


def test_run_file_and_checkpoint_give_the_same_weights(tmp_path):
    run = eva_fast.pretrain(out=tmp_path / "run", steps=2, **TINY)
    expected = load_file(run.weights)
    for source in (run.out, run.weights, run.checkpoint):
        found = load_file(export(source, tmp_path / "deep" / "out.safetensors").path)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[k], expected[k]) for k in expected)
    run.weights.unlink()  # as in a run that has not ended
    found = load_file(export(run.out, tmp_path / "again.safetensors").path)
    assert all(torch.equal(found[k], expected[k]) for k in expected)
    (run.checkpoint / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="damaged"):
        export(run.checkpoint, tmp_path / "never.safetensors")
    assert not (tmp_path / "never.safetensors").exists()


def test_nothing_to_export(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a run's folder, or the run has not ended"):
        export(tmp_path, tmp_path / "x.safetensors")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match="neither final weights nor a whole checkpoint"):
        export(tmp_path, tmp_path / "x.safetensors")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        export(tmp_path / "nowhere", tmp_path / "x.safetensors")


def test_another_librarys_folder(tmp_path):
    """Heads, which no shape shows, come from its config.json."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        image_size=32, patch_size=8, layer_norm_eps=1e-6,
    )  # fmt: skip
    theirs = transformers.ViTModel(config, add_pooling_layer=False).eval()
    theirs.save_pretrained(tmp_path / "vit")
    file = export(tmp_path / "vit", tmp_path / "out.safetensors").path
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
    found = load_file(export(run.checkpoint, tmp_path / "x.safetensors").path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], expected[k]) for k in expected)


def test_a_place_that_cannot_be_written_to_is_wrong_use(run, tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "out.safetensors", tmp_path / ("x" * 250)):
        with pytest.raises(UsageError, match="cannot write .* choose another out="):
            export(run.weights, place)


@pytest.mark.parametrize("format", weights.FORMATS)
def test_the_command_prints_what_loads(run, format, capsys):
    """By default beside the run's own weights, which stay the run's weights."""
    cli.main(["export", str(run.out), "--format", format])
    path = run.out / f"model.{format}{'' if format in weights.FOLDERS else '.safetensors'}"
    assert path.is_dir() if format in weights.FOLDERS else path.is_file()
    space = {"model": OfficialViT(run.model.sizes)}  # what the official code has before its lines
    exec(capsys.readouterr().out, space)
    assert isinstance(space["model"], torch.nn.Module)
    ours = load_student(run.weights, torch.device("cpu"))
    again = load_student(export(run.out, run.out / "again.safetensors").path, torch.device("cpu"))
    torch.testing.assert_close(again.state_dict(), ours.state_dict(), atol=0, rtol=0)


def test_the_command_knows_every_format():
    hints = typing.get_type_hints(cli.export.export)
    assert typing.get_args(hints["format"]) == tuple(weights.FORMATS)
    assert typing.get_args(hints["resize"]) == weights.RESIZES


def test_from_python(run):
    written = eva_fast.export(run.weights, format="timm")
    assert written.path == run.out / "model.timm.safetensors"
    average = run.out / "average.safetensors"
    average.write_bytes(run.weights.read_bytes())
    assert eva_fast.export(average, format="hf").path == run.out / "average.hf"


def test_official_checkpoint(run, tmp_path):
    """As the official code's own: strict there, and here again to the byte."""
    written = export(run.out, tmp_path / "checkpoint.pt")
    space = {"model": OfficialViT(run.model.sizes)}
    exec(written.snippet, space)
    theirs, expected = space["model"].state_dict(), load_file(run.weights)
    assert theirs.keys() == expected.keys()
    assert all(torch.equal(theirs[name], expected[name]) for name in expected)
    loaded = torch.load(written.path, weights_only=True)
    assert loaded.keys() == {"model"}
    # DeepSpeed's files have the same under `module`, in 16 bits beside its own state.
    half = {name: value.half() for name, value in loaded["model"].items()}
    torch.save({"module": half, "dp_world_size": 8, "epoch": 3}, tmp_path / "mp_rank_00.pt")
    given = {"num_heads": "4"}
    for file, exact in ((written.path, True), (tmp_path / "mp_rank_00.pt", False)):
        state, _ = weights.read_student(file)
        assert weights.infer_sizes(state, given) == run.model.sizes
        for name, value in expected.items():
            assert torch.equal(state[name].float(), value if exact else value.half().float())


def test_the_bytes_of_a_round_trip(run, tmp_path):
    """Official naming in, out and in again: equal files."""
    first = export(run.weights, tmp_path / "a.safetensors").path
    assert first.read_bytes() == run.weights.read_bytes()
    checkpoint = export(first, tmp_path / "b.pt").path
    weights.write(
        tmp_path / "c.safetensors", weights.read(checkpoint), weights.read(first).metadata
    )
    assert (tmp_path / "c.safetensors").read_bytes() == run.weights.read_bytes()


@pytest.mark.parametrize("resize", weights.RESIZES)
def test_other_image_and_patch_sizes(run, tmp_path, resize):
    options = dict(img_size=60, patch_size=10, resize=resize)
    small = export(run.out, tmp_path / "x.safetensors", **options)
    found, given = load_file(small.path), load_file(run.weights)
    table = weights.resize_positions(given["pos_embed"], (4, 4), (6, 6), resize)
    assert torch.equal(found["pos_embed"], table)
    kernel = weights.resize_patches(given["patch_embed.proj.weight"], 10, resize)
    assert torch.equal(found["patch_embed.proj.weight"], kernel)
    assert load_student(small.path, torch.device("cpu")).sizes.img_size == 60


def test_a_runs_own_weights_stay(run):
    before = run.weights.read_bytes()
    folder = export(run.out, format="hf-vit").path
    for source, out, format, message in (
        (run.out, run.out, "hf", "is a run's folder, whose own model.safetensors stays"),
        (run.out, run.weights, "timm", "is what is to be exported"),
        (run.weights, run.weights, "official", "is what is to be exported"),
        (folder, folder, "hf", "is what is to be exported"),
        (run.weights, run.out / "pictures" / ".." / "model.safetensors", "timm", "is what is to"),
    ):
        with pytest.raises(UsageError, match=f"{message}.*choose another out="):
            export(source, out, format=format)
    assert run.weights.read_bytes() == before


def test_wrong_use(run, tmp_path):
    plain = tmp_path / "weights.safetensors"
    plain.write_bytes(run.weights.read_bytes())
    for source in (plain, run.checkpoint):
        with pytest.raises(UsageError, match=r"neither the folder of a run nor in one: .* out="):
            export(source)
    with pytest.raises(UsageError, match="unknown format 'onnx'; possible are official, timm, hf"):
        export(run.out, tmp_path / "x", format="onnx")
    with pytest.raises(UsageError, match="format hf is a folder, and .* is a file"):
        export(run.out, plain, format="hf")
    with pytest.raises(UsageError, match=r"end weights\.bin in \.safetensors or \.pth"):
        export(run.out, tmp_path / "weights.bin", format="timm")
    with pytest.raises(UsageError, match="not a multiple of patch_size 7"):
        export(run.out, tmp_path / "x", patch_size=7)
