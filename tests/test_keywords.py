"""pretrain()'s options as type checkers, editors and help() see them."""

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
from eva_fast.keywords import AnyPath, Pair, PretrainOptions, RunOptions, option_help
from eva_fast.options import TextOrObject

FIELDS = {f.name: f for g in dataclasses.fields(Config) for f in dataclasses.fields(g.type)}
NAMED = {"data", "model", "teacher", "out"}
# From Python a path may be text and a pair a list; objects are Any already.
WIDER = {Path | None: AnyPath | None, tuple[float, float]: Pair}


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
from eva_fast import pretrain
import eva_fast
from eva_fast.config import Config

result = eva_fast.pretrain(
    data=["a.jpg"], model="eva_s_patch14_224", teacher="hog", out=pathlib.Path("runs"), lr=1,
    betas=[0.9, 0.95], init_from="w.safetensors", precision="bf16", epochs=3, mask_count=None,
)
path: pathlib.Path = result.weights
pretrain("builtin", steps=3)
config: Config = eva_fast.config.Config.from_yaml("c.yaml", out="runs", lr=1e-3)
"""
WRONG = {
    "eva_fast.pretrain(stesp=3)": 'Unexpected keyword argument "stesp"',
    "eva_fast.pretrain(steps='3')": 'Argument "steps"',
    "eva_fast.pretrain(precision='fp4')": 'Argument "precision"',
    "eva_fast.pretrain(out=3)": 'Argument "out"',
    "eva_fast.config.Config.from_yaml('c.yaml', learning_rate=1.0)": '"learning_rate"',
}


# Ours is followed, as it is for who has installed it; the large libraries need not be read.
SETTINGS = """
[mypy]
python_version = 3.10
follow_imports = silent
ignore_missing_imports = True
[mypy-torch.*,numpy.*,PIL.*,yaml.*]
follow_imports = skip
"""


@pytest.mark.slow
def test_a_type_checker_knows_the_options(tmp_path):
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
