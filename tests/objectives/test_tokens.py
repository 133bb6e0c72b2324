"""Tokens of a tokenizer, from its run to the student's."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import eva_fast
from eva_fast.config import Config
from eva_fast.evaluation.evaluator import evaluate
from eva_fast.evaluation.students import load_student
from eva_fast.objectives.tokens import Tokens
from eva_fast.recipes.export import export
from eva_fast.recipes.pretrain import run
from tests.objectives.test_vqkd import Killed

SIZES = dict(
    data="builtin", model="eva_ti_patch8_32", embed_dim=32, depth=2, num_heads=2, mlp_hidden=48,
    batch_size=8, accumulate=2, workers=0, device="cpu", progress=False, log_every=1,
)  # fmt: skip
OPTIONS = dict(
    SIZES, objective="tokens", kernels="torch", steps=12, checkpoint_every=4, lr=3e-3, drop_path=0.2
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The folder of a tokenizer's run."""
    out = tmp_path_factory.mktemp("vqkd") / "run"
    sizes = dict(codebook_size=24, code_dim=8, decoder_depth=1)
    eva_fast.pretrain(objective="vqkd", out=out, steps=3, kernels="torch", **SIZES, **sizes)
    return out


@pytest.fixture(scope="module")
def trained(tokenizer, tmp_path_factory):
    out = tmp_path_factory.mktemp("tokens") / "run"
    return eva_fast.pretrain(teacher=tokenizer, out=out, **OPTIONS)


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_it_learns(trained):
    found = lines(trained.out)
    assert sum(r["loss"] for r in found[-4:]) < sum(r["loss"] for r in found[:4])
    for record in found:
        assert abs(record["loss"] - record["patch_loss"] - record["branch_loss"]) < 1e-5
        assert 0 <= record["accuracy"] <= 1 and 0 < record["codes_in_batch"] <= 1
    assert Image.open(trained.picture).size[0] > 4 * 208
    names = load_file(trained.weights).keys()
    assert {"mask_token", "lm_head.weight", "cls_pt_layers.1.gamma_2"} <= names


def test_the_constant_prediction_is_how_often_codes_come():
    objective = Tokens()
    objective.codes, objective.terms = 5, 2
    target = torch.tensor([0, 0, 0, 3])
    rows = objective.averaged(target)
    assert rows.tolist() == [[0.75, 0, 0, 0.25, 0]]
    guess = 0.99 * rows[0] + 0.01 / 5
    expected = -2 * (0.75 * guess[0].log() + 0.25 * guess[3].log())
    torch.testing.assert_close(objective.constant_loss(rows[0], rows), expected)
    assert objective.constant_loss(torch.eye(5)[4], rows).isfinite()


def test_killed_and_resumed_it_ends_with_the_same_bytes(trained, tokenizer, tmp_path):
    def die(step):
        if step == 6:
            raise Killed

    with pytest.raises(Killed):
        run(Config.from_options(dict(teacher=tokenizer, out=tmp_path, **OPTIONS)), on_step=die)
    again = eva_fast.pretrain(teacher=tokenizer, out=tmp_path, resume="auto", **OPTIONS)
    for name in ("model.safetensors", "picture.png"):
        assert (again.out / name).read_bytes() == (trained.out / name).read_bytes()


def test_fused_layers_learn_the_same(trained, tokenizer, tmp_path):
    """Two steps without drop-path, whose draws differ between the kinds of layers."""
    found = {
        kind: eva_fast.pretrain(
            teacher=tokenizer, out=tmp_path / kind,
            **{**OPTIONS, "kernels": kind, "steps": 2, "drop_path": 0.0},
        )
        for kind in ("torch", "native")
    }  # fmt: skip
    a, b = ([r["loss"] for r in lines(result.out)] for result in found.values())
    assert a == pytest.approx(b, rel=1e-5)


def test_a_step_that_is_not_finite_changes_nothing(tokenizer, tmp_path):
    seen = []

    class Stumbling(Tokens):
        def loss(self, module, batch, target):
            loss, measured = super().loss(module, batch, target)
            return (loss * torch.nan if len(seen) == 1 else loss), measured

        def after_step(self, module, applied):
            seen.append({n: v.clone() for n, v in module.state_dict().items()})

    options = {**OPTIONS, "objective": Stumbling, "steps": 3}
    eva_fast.pretrain(teacher=tokenizer, out=tmp_path, **options)
    assert all(torch.equal(seen[0][name], seen[1][name]) for name in seen[0])
    assert not torch.equal(seen[1]["lm_head.weight"], seen[2]["lm_head.weight"])


BAD = {
    "predicts the codes of a tokenizer, and teacher 'builtin'": dict(),
    "teacher 'hog' gives features": dict(teacher="hog"),
    "cannot be whitened": dict(teacher="hog", whiten=True),
    "gives the codes of a 4x4 grid of patches, and the student has 6x6": dict(
        model="eva_ti_patch8_48"
    ),
    "does not exist": dict(teacher="runs/nowhere/vq"),
    "mask_count must be between 1 and 15": dict(mask_count=16),
    "branch_depth=0": dict(depth=1),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_clear_error(tokenizer, tmp_path, message):
    options = {**OPTIONS, **BAD[message], "out": tmp_path / "run"}
    if "teacher" not in options and "builtin" not in message:
        options["teacher"] = tokenizer
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        eva_fast.pretrain(**options)
    assert not (tmp_path / "run").exists()


def test_options():
    with pytest.raises(ValueError, match="branch_depth must be 0 or more, got -1"):
        Config.from_options({"objective": "tokens", "branch_depth": -1})


def test_timm_s_beit_is_its_encoder(trained, tmp_path):
    pytest.importorskip("timm")
    done = export(trained.out, tmp_path / "beit.safetensors", format="timm")
    scope: dict = {}
    exec(done.snippet, scope)
    images = torch.randn(2, 3, 32, 32)
    student = trained.model.eval()
    with torch.no_grad():
        found, own = scope["model"].forward_features(images), student.forward_features(images)
    assert (found - own).abs().max() <= 1e-6 * own.abs().max()


@pytest.mark.parametrize("ended", [True, False], ids=["final weights", "a checkpoint"])
@pytest.mark.parametrize("kind", ["tokenizer", "student"])
def test_export_and_back(trained, tokenizer, tmp_path, kind, ended):
    out = tokenizer if kind == "tokenizer" else trained.out
    source = out if ended else sorted((out / "checkpoints").iterdir())[-1]
    done = export(source, tmp_path / "weights.safetensors")
    found, own = load_file(done.path), load_file(out / "model.safetensors")
    assert found.keys() == own.keys()
    assert all(torch.equal(found[name], own[name]) for name in own)
    again = load_student(done.path, torch.device("cpu"))
    assert type(again).__name__ == ("VqKd" if kind == "tokenizer" else "TokenViT")
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    assert again.forward_features(images).shape == (2, 17, 32)
    scope: dict = {
        "model": type("Any", (), {"load_state_dict": lambda self, state, strict: None})()
    }
    exec(export(source, tmp_path / "weights.pth").snippet, scope)
    read = torch.load(tmp_path / "weights.pth", weights_only=True)["model"]
    assert read.keys() == scope["state"].keys() == own.keys()
    assert all(torch.equal(read[name], own[name]) for name in own)


@pytest.mark.parametrize("kind", ["tokenizer", "student"])
def test_what_cannot_be_exported(trained, tokenizer, tmp_path, kind):
    out = tokenizer if kind == "tokenizer" else trained.out
    with pytest.raises(ValueError, match="format hf is of EVA's student"):
        export(out, tmp_path / "folder", format="hf")
    with pytest.raises(ValueError, match="exported at their own size"):
        export(out, tmp_path / "x.safetensors", img_size=64)
    if kind == "student":
        with pytest.raises(ValueError, match="as safetensors, not as x.pth"):
            export(out, tmp_path / "x.pth", format="timm")


@pytest.mark.parametrize("kind", ["tokenizer", "student"])
def test_evaluation(trained, tokenizer, tmp_path, kind):
    out = tokenizer if kind == "tokenizer" else trained.out
    result = evaluate(out, probe=("knn",), out=tmp_path / "eval.json", device="cpu")
    kinds = [row.features for row in result.rows]
    assert kinds[:2] == ["student", "random init"]
    assert any("teacher" in name for name in kinds) == (kind == "tokenizer")
