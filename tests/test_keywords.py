"""The public API as type checkers, editors and help() see it."""

import dataclasses
import inspect
import pydoc
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

import eva_fast
from eva_fast.config import Config
from eva_fast.keywords import AnyPath, Names, Pair, PretrainOptions, RunOptions, option_help
from eva_fast.options import NAMES, TextOrObject

FIELDS = {f.name: f for g in dataclasses.fields(Config) for f in dataclasses.fields(g.type)}
NAMED = {"data", "model", "teacher", "out"}
# From Python a path may be text, a pair and names a list; objects are Any already.
WIDER = {Path | None: AnyPath | None, tuple[float, float]: Pair, NAMES: Names}


def test_the_keywords_are_the_options():
    """Same names, same types: an option that is added to a dataclass must be added here."""
    hints = get_type_hints(RunOptions)
    assert set(hints) == set(FIELDS)
    for name, field in FIELDS.items():
        if field.type is TextOrObject:
            assert name in ("data", "teacher", "objective"), name
        else:
            assert hints[name] == WIDER.get(field.type, field.type), name
    assert set(get_type_hints(PretrainOptions)) == set(FIELDS) - NAMED


def test_the_plans_signature_has_every_option_too():
    parameters = inspect.signature(eva_fast.plan).parameters
    own = {"hardware", "gpus", "images", "formulation", "require_fit", "simulate"}
    assert set(parameters) == set(FIELDS) | own and parameters["steps"].default is None


def test_signature_and_help_have_every_option():
    parameters = dict(inspect.signature(eva_fast.pretrain).parameters)
    assert parameters.pop("callbacks").default == ()
    assert set(parameters) == set(FIELDS)
    assert {name: p.default for name, p in parameters.items()} == {
        name: None if name in ("model", "teacher") else field.default  # or the recipe's
        for name, field in FIELDS.items()
    }
    text = " ".join(pydoc.render_doc(eva_fast.pretrain, renderer=pydoc.plaintext).split())
    for group in dataclasses.fields(Config):
        helps = option_help(group.type)
        assert set(helps) == {f.name for f in dataclasses.fields(group.type)}
        for name in set(helps) - NAMED:
            assert f"{name} = {FIELDS[name].default!r}: {helps[name]}" in text


RIGHT = """
import pathlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from eva_fast import pretrain
import eva_fast
from eva_fast.config import Config


class Watch(eva_fast.Callback):
    def on_step(self, training: eva_fast.Training) -> None:
        if training.step == 3:
            training.stop()

    def on_log(self, training: eva_fast.Training, metrics: Mapping[str, object]) -> None:
        print(metrics["loss"], training.out / "x", training.student())


class Own(eva_fast.data.Source):
    def __len__(self) -> int:
        return 3


class Mine(eva_fast.objectives.Objective):
    def build(
        self, setting: eva_fast.objectives.Setting, teacher: nn.Module | None
    ) -> nn.Module:
        return nn.Linear(setting.sizes.img_size, 3)

    def loss(
        self, module: nn.Module, batch: eva_fast.data.Batch, target: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.zeros(()), {}


result = eva_fast.pretrain(
    data=["a.jpg"], model="eva_s_patch14_224", teacher="hog", out=pathlib.Path("runs"), lr=1,
    betas=[0.9, 0.95], init_from="w.safetensors", precision="bf16", epochs=3, mask_count=None,
    callbacks=[Watch()], objective=Mine, probe_with=["knn", "linear"], track="wandb",
)
path: pathlib.Path = result.weights
loss: float | None = result.loss
pretrain("builtin", steps=3)
config: Config = eva_fast.config.Config.from_yaml("c.yaml", out="runs", lr=1e-3)
with eva_fast.Trainer(data="photos", steps=3, callbacks=(Watch(),)) as trainer:
    steps: Iterator[int] = iter(trainer)
    print(next(steps) + 1, trainer.training.metrics["loss"])
whole: eva_fast.PretrainResult = trainer.result
judged = eva_fast.evaluate(result.out, "photos", probe="knn", teacher="none", out="eval.json")
accuracy: float = judged.student.accuracy["knn"]
rows: list[str] = [row.features for row in judged.rows] + list(judged.verdicts)
found = eva_fast.plan("h100", 8, model="eva_g_patch14_224", images=1e6, require_fit=False)
days: float | None = found.days
flags: str = found.asked.flags if found.best is None else found.best.flags
simulated: eva_fast.Simulation = eva_fast.plan(gpus=8, simulate=True, model="eva_g_patch14_224")
linear: nn.Linear = eva_fast.accelerate(nn.Linear(3, 2))
exported = eva_fast.export(result.out, format="timm", out=pathlib.Path("x"))
print(exported.path.name, exported.snippet.splitlines(), eva_fast.__version__.split("."))
tables: dict[str, object] = eva_fast.ablate("x", budget=3, rows="eva", probe=["knn"], steps=3).tables
teacher: eva_fast.teachers.Teacher = eva_fast.load_teacher("hog", grid=6)
images: object = eva_fast.data.check("photos", channels=5)["images"]
masker = eva_fast.BlockMasker(grid=(16, 16), count=105)
model = eva_fast.create_model("eva_ti_patch16_96", predict_dim=3)
"""
WRONG = {
    "eva_fast.pretrain(stesp=3)": 'Unexpected keyword argument "stesp"',
    "eva_fast.pretrain(steps='3')": 'Argument "steps"',
    "eva_fast.pretrain(precision='fp4')": 'Argument "precision"',
    "eva_fast.pretrain(out=3)": 'Argument "out"',
    "eva_fast.evaluate('runs', probes='knn')": 'Unexpected keyword argument "probes"',
    "eva_fast.evaluate('runs').students": 'has no attribute "students"',
    "eva_fast.plan(modle='eva_g_patch14_224')": 'did you mean "model"',
    "eva_fast.plan(simulate=True, gpus=8).best": '"Simulation" has no attribute "best"',
    "eva_fast.export('runs', fromat='timm')": 'Unexpected keyword argument "fromat"',
    "eva_fast.Trainer(stesp=3)": 'Unexpected keyword argument "stesp"',
    "eva_fast.accelerate('vit')": '"accelerate"',
    "eva_fast.pretrain().weight": 'has no attribute "weight"',
    "eva_fast.config.Config.from_yaml('c.yaml', learning_rate=1.0)": '"learning_rate"',
}


# Ours is followed, as it is for who has installed it; the large libraries need not be read.
SETTINGS = """
[mypy]
python_version = 3.10
strict = True
follow_imports = silent
ignore_missing_imports = True
[mypy-numpy.*,PIL.*,yaml.*]
follow_imports = skip
"""


@pytest.mark.slow
def test_a_strict_type_checker_knows_the_api(tmp_path):
    (tmp_path / "eva_fast").symlink_to(Path(eva_fast.__file__).parent)
    (tmp_path / "mypy.ini").write_text(SETTINGS)
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text("\n".join(["import eva_fast", *WRONG]) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), "right.py", "wrong.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    errors = [line for line in done.stdout.splitlines() if "error" in line and line[:5] != "Found"]
    assert len(errors) == len(WRONG), done.stdout + done.stderr
    for line, (number, message) in zip(errors, enumerate(WRONG.values(), start=2)):
        assert line.startswith(f"wrong.py:{number}:") and message in line
