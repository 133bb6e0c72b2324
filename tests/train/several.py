"""Runs of several real processes, started as people start them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from safetensors.torch import load_file

OPTIONS = dict(
    model="eva_ti_patch16_96", depth=2, embed_dim=32, num_heads=2, mlp_hidden=48, img_size=32,
    teacher="hog", batch_size=8, workers=0, steps=12, log_every=1, kernels="native", device="cpu",
    drop_path=0.1, progress=False, clip_grad=0.5,
)  # fmt: skip
LIMIT = 240


def flags(**options) -> list[str]:
    """As typed."""
    words = []
    for name, value in {**OPTIONS, **options}.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{flag}")
        else:
            words += [f"--{flag}", str(value)]
    return words


def torchrun(
    processes: int, *command: str, restarts: int = 0, **environment: str
) -> subprocess.Popen:
    """Starts `python -m torch.distributed.run`, in a group of its own."""
    words = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
        f"--max-restarts={restarts}", "--monitor-interval=0.1", *command,
    ]  # fmt: skip
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def pretrain(processes: int, out: Path, restarts: int = 0, **options) -> subprocess.Popen:
    """A run of so many processes that has begun."""
    command = ("-m", "eva_fast", "pretrain", *flags(out=out, **options))
    return torchrun(processes, *command, restarts=restarts)


def ended(run: subprocess.Popen, seconds: float = LIMIT) -> tuple[int, str]:
    """(exit status, all that it said); killed, and the test fails, where it takes longer."""
    try:
        said, _ = run.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        for pid in (*workers_of(run), run.pid):  # each worker is in a session of its own
            os.kill(pid, signal.SIGKILL)
        said, _ = run.communicate()
        raise AssertionError(f"still running after {seconds} s:\n{said[-3000:]}") from None
    return run.returncode, said


def done(run: subprocess.Popen) -> str:
    """What a run said that ends well."""
    status, said = ended(run)
    assert status == 0, said[-3000:]
    return said


def workers_of(run: subprocess.Popen) -> list[int]:
    """The processes that torchrun started."""
    found = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    return [int(pid) for pid in found if "eva_fast" in Path(f"/proc/{pid}/cmdline").read_text()]


def wait_for(path: Path, run: subprocess.Popen, seconds: float = LIMIT) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert run.poll() is None, ended(run)[1][-3000:]
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.01)


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in lines(out)]


def weights(out: Path) -> dict:
    return load_file(out / "model.safetensors")


def furthest(a: dict, b: dict) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)
