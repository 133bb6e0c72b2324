"""What `pretrain()` says to someone who calls it from Python."""

import subprocess
import sys

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
    assert len(said.splitlines()) == 1 and "EvaViT" not in said and "weights=" in said


def test_a_caller_with_handlers_is_asked_for_nothing(tmp_path):
    _, heard = run(
        tmp_path / "run", "logging.getLogger('eva_fast').addHandler(logging.NullHandler())"
    )
    assert "step 2/2" not in heard


def test_the_public_names_are_shown():
    assert {"pretrain", "create_model", "load_teacher", "data"} <= set(dir(eva_fast))
