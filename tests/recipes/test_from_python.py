"""What `pretrain()` says to someone who calls it from Python."""

import subprocess
import sys

from PIL import Image

import eva_fast

RUN = """
import logging, sys
import eva_fast
{before}
result = eva_fast.pretrain(
    out=sys.argv[1], steps=2, batch_size=2, embed_dim=32, depth=1, num_heads=2, mlp_hidden=48,
    workers=0, device="cpu", kernels="torch",
)
assert not logging.getLogger().handlers
assert logging.getLogger("eva_fast").level == 0
print(result)
print(repr(result))
"""


def run(out, before):
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(before=before), str(out)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_a_run_is_heard_and_its_result_is_short(tmp_path):
    said, heard = run(tmp_path / "run", "")
    assert "step 2/2" in heard
    *shown, written = said.splitlines()  # str and repr
    names = [line.split()[0] for line in shown]
    assert names == ["loss", "picture", "weights", "metrics", "checkpoint"]
    assert "weights=" in written and "EvaViT" not in said


def test_a_caller_with_handlers_is_asked_for_nothing(tmp_path):
    _, heard = run(
        tmp_path / "run", "logging.getLogger('eva_fast').addHandler(logging.NullHandler())"
    )
    assert "step 2/2" not in heard


def test_the_public_names_are_shown():
    assert {"pretrain", "create_model", "load_teacher", "data"} <= set(dir(eva_fast))


def test_a_batch_larger_than_the_data_works_and_is_said(tmp_path, caplog):
    """36 images at batch 256, as someone tries it with the first folder at hand."""
    (tmp_path / "photos").mkdir()
    for i in range(36):
        Image.new("RGB", (20, 16), (7 * i, 90, 250 - 7 * i)).save(tmp_path / f"photos/{i}.png")
    with caplog.at_level("INFO", logger="eva_fast"):
        result = eva_fast.pretrain(
            tmp_path / "photos", out=tmp_path / "run", batch_size=256, epochs=2,
            img_size=16, patch_size=8, embed_dim=32, depth=1, num_heads=2, mlp_hidden=48,
            workers=0, device="cpu", kernels="torch", teacher="hog", progress=False,
        )  # fmt: skip
    assert result.metrics["step"] == 2 and result.metrics["epoch"] == 2
    (line,) = [r.getMessage() for r in caplog.records if "36 images" in r.getMessage()]
    assert "fewer than the batch of 256" in line and "(2 in all)" in line
