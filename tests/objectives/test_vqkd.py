"""A tokenizer's run, and what reads it."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import eva_fast
from eva_fast.config import Config
from eva_fast.objectives.vqkd import TrainTokenizer
from eva_fast.recipes.pretrain import run

OPTIONS = dict(
    data="builtin", model="eva_ti_patch8_32", embed_dim=64, depth=1, num_heads=2, mlp_hidden=48,
    codebook_size=40, code_dim=8, decoder_depth=1, batch_size=8, accumulate=2, workers=0,
    device="cpu", kernels="torch", progress=False, steps=12, log_every=1, checkpoint_every=4,
    lr=2e-3,
)  # fmt: skip


class Killed(BaseException):
    """What ends a process in the middle, as far as the run's folder can tell."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("vqkd") / "run"
    return eva_fast.pretrain(objective="vqkd", out=out, **OPTIONS)


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_and_says_how_much_of_the_codebook_it_uses(trained):
    found = lines(trained.out)
    assert found[-1]["reconstruction_loss"] < found[0]["reconstruction_loss"]
    assert found[-1]["gain"] > found[0]["gain"]
    assert 0.2 < found[-1]["codes_used"] <= 1
    total = found[-1]["reconstruction_loss"] + found[-1]["commitment_loss"]
    assert abs(found[-1]["loss"] - total) < 1e-6
    assert Image.open(trained.picture).size[0] > 4 * 208


def test_killed_and_resumed_it_ends_with_the_same_bytes(trained, tmp_path, monkeypatch):
    def die(step):
        if step == 6:
            raise Killed

    options = Config.from_options(dict(objective="vqkd", out=tmp_path, **OPTIONS))
    with pytest.raises(Killed):
        run(options, on_step=die)
    monkeypatch.setattr(TrainTokenizer, "start", None)  # k-means a second time would be an error
    again = eva_fast.pretrain(objective="vqkd", out=tmp_path, resume="auto", **OPTIONS)
    for name in ("model.safetensors", "picture.png"):
        assert (again.out / name).read_bytes() == (trained.out / name).read_bytes()


@pytest.mark.parametrize("fault", [lambda loss: loss * torch.nan, lambda loss: loss + 1e3])
def test_a_step_that_is_not_finite_or_a_spike_changes_nothing(tmp_path, fault, monkeypatch):
    monkeypatch.setattr("eva_fast.train.spikes.STEPS", 2)
    seen = []

    class Stumbling(TrainTokenizer):
        def loss(self, module, batch, target):
            loss, measured = super().loss(module, batch, target)
            return (fault(loss) if len(seen) == 2 else loss), measured

        def after_step(self, module, applied):
            super().after_step(module, applied)
            seen.append({n: v.clone() for n, v in module.state_dict().items()})

    eva_fast.pretrain(objective=Stumbling, out=tmp_path, **{**OPTIONS, "steps": 4})
    assert all(torch.equal(seen[1][name], seen[2][name]) for name in seen[1])
    moved = [name for name in seen[1] if not torch.equal(seen[2][name], seen[3][name])]
    assert "quantize.embedding.weight" in moved and "quantize.cluster_size" in moved


@pytest.fixture
def images():
    return torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)


def test_the_run_is_a_teacher_of_codes(trained, images):
    teacher = eva_fast.load_teacher(trained.out, grid=(4, 4))
    codes = teacher(images)
    assert teacher.points == ("code",) and teacher.dim == 40
    assert codes.dtype == torch.int64 and torch.equal(codes, trained.model.codes(images))
    mask = torch.tensor([[0, 3], [1, 2], [5, 15]], dtype=torch.int32)
    assert torch.equal(teacher(images, mask), codes.gather(1, mask.long()).flatten())
    assert not teacher.state_dict().keys() & {"tokenizer.quantize.embedding.weight"}
    halves = eva_fast.load_teacher(trained.out, dtype=torch.bfloat16)
    assert halves.tokenizer.quantize.embedding.weight.dtype == torch.float32
    assert (halves(images) == codes).float().mean() > 0.7


def test_an_official_file_says_no_sizes(trained, images, tmp_path):
    """Its shapes do, with heads of 64."""
    tensors = load_file(trained.weights)
    save_file(tensors, tmp_path / "vqkd.safetensors")
    one_head = eva_fast.load_teacher(tmp_path / "vqkd.safetensors")
    sizes = one_head.tokenizer.sizes
    assert (sizes.student.num_heads, sizes.student.depth, sizes.decoder_depth) == (1, 1, 1)
    assert one_head(images).shape == (3, 16)
    del tensors["encode_task_layer.2.bias"]
    save_file(tensors, tmp_path / "vqkd.safetensors")
    with pytest.raises(ValueError, match=r"not whole; missing.*encode_task_layer\.2\.bias"):
        eva_fast.load_teacher(tmp_path / "vqkd.safetensors")


BAD = {
    "gives the codes of a 4x4 grid": dict(model="eva_ti_patch8_48"),
    "asks for features at 'proj'.*gives them at 'code'": dict(),
    "which cannot be whitened": dict(whiten=True),
}


@pytest.mark.parametrize("message", BAD)
def test_a_tokenizer_is_no_teacher_of_features(trained, tmp_path, message):
    options = {**OPTIONS, **BAD[message], "teacher": trained.out, "out": tmp_path / "run"}
    with pytest.raises(ValueError, match=message):
        eva_fast.pretrain(objective="vqkd", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["codebook_size", "code_dim", "decoder_depth"])
def test_sizes_are_at_least_one(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        eva_fast.pretrain(objective="vqkd", out=tmp_path / "run", **{**OPTIONS, name: 0})
    assert not (tmp_path / "run").exists()
