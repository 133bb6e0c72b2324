"""The captured step: what can be shown of it without a GPU, on a stub whose launches do nothing, and
that a GPU gives the same bits with it and without."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import eva_fast
from bench.stub import build
from eva_fast.errors import UsageError
from eva_fast.layers import Linear, keep_copies
from eva_fast.objectives.eva import Eva
from eva_fast.teachers import load_teacher
from eva_fast.train import captured, make_optimizer
from eva_fast.train.captured import CapturedStep, obstacle
from tests.train.fakes import Squares, batch, make_step
from tests.train.test_step import equal

ROOT = Path(__file__).parents[2]
on_stub = pytest.mark.skipif(
    build.obstacle() is not None, reason=f"the stub of CUDA cannot run here: {build.obstacle()}"
)


@pytest.fixture(scope="module")
def seen():
    """What `captured_worker.py` saw."""
    command = [sys.executable, "-m", "tests.train.captured_worker"]
    done = subprocess.run(
        command, cwd=ROOT, env=build.environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@on_stub
def test_nothing_in_a_capture_waits_or_reads_the_host(seen):
    assert seen["faults"] == []
    assert seen["eager"]["waits"] == 0


@on_stub
def test_two_captures_launch_the_same_with_the_same_arguments(seen):
    """Whatever the batch and the learning rate: no number of the host is in the graph. Each of the two
    micro-batches draws once for all blocks."""
    assert seen["launches"][0] == seen["launches"][1] > 300
    assert seen["differences"] == []
    kinds = seen["kinds"]
    assert kinds["adamw_kernel"] >= 2 and kinds["aten.rand.default"] == 2, kinds
    assert kinds["attention_forward_kernel"] > 0 and kinds["add_layer_norm_backward_kernel"] > 0


@on_stub
def test_a_replay_is_one_launch_beside_its_inputs(seen):
    """Two fields of the batch, the rate, and the random generator's seed and offset."""
    for counts in seen["replays"]:
        assert counts["graph_launches"] == 1
        assert counts["launches"] <= 5
        assert counts["host_copies"] == counts["waits"] == counts["allocations"] == 0
    assert seen["step"] == 8


@on_stub
def test_a_batch_of_another_size_is_a_step_of_its_own(seen):
    assert seen["smaller_batch"]["graph_launches"] == 0
    assert seen["smaller_batch"]["launches"] > 300


class HalfSquares(Squares):
    """`Squares` by products that read a bfloat16 copy of the weight."""

    def build(self, setting, teacher):
        module = super().build(setting, teacher)
        module.linear = Linear(12, 4)
        return module

    def loss(self, module, batch, target):
        error = module.linear(batch.images.flatten(1).to(torch.bfloat16)).float() - target
        return error.square().mean(), {"largest": error.detach().abs().amax()}


def test_no_replay_reads_a_stale_copy(monkeypatch):
    """A stand-in on a CPU for a graph whose launches read the copies' memory, move parameters and
    copies together, and are counted by nobody: whatever else moved a parameter, the copy follows before
    the next replay, and an eager read after one finds it current."""
    step = make_step(HalfSquares())
    module, weight = step.state.module, step.state.module.linear.weight
    copies = keep_copies(module, torch.bfloat16)
    step.state.optimizer = make_optimizer(module, lr=1e-2, copies=copies)
    assert list(copies) == [weight]
    kept, read = copies[weight], []

    class StandIn:
        def capture(self, stream):
            return contextlib.nullcontext()

        def replay(self):
            read.append(kept.clone())
            weight.data.add_(0.5)
            kept.data.copy_(weight.data)

    monkeypatch.setattr(captured, "Graph", StandIn)
    monkeypatch.setattr(captured, "_side_stream", lambda device: None)
    monkeypatch.setattr(captured, "_on_device", lambda value: isinstance(value, torch.Tensor))
    replayed = captured._Captured(step, batch(1))
    for number, change in enumerate((lambda w: w, lambda w: w, lambda w: w.mul_(3), lambda w: w)):
        with torch.no_grad():
            change(weight)
        expected = weight.detach().to(torch.bfloat16)
        replayed(batch(2 + number), 1e-2)
        assert torch.equal(read[-1], expected)
        now = module.linear.matrix(torch.bfloat16).copy
        assert now is kept and torch.equal(now, weight.detach().to(torch.bfloat16))
    assert not replayed.is_outdated()
    weight.data = weight.data.clone()
    assert replayed.is_outdated()


def test_on_a_cpu_on_is_an_error_and_auto_the_plain_step(tmp_path):
    with pytest.raises(UsageError, match="graph='on' needs an NVIDIA GPU"):
        eva_fast.pretrain(out=tmp_path / "run", device="cpu", graph="on")
    with pytest.raises(UsageError, match="the run is on cpu"):
        CapturedStep(make_step(), "on")
    plain, graphed = make_step(), CapturedStep(make_step(), "auto")
    for number in range(3):
        plain(batch(number), 1e-2)
        graphed(batch(number), 1e-2)
    assert graphed.captured is None and graphed.state.step == 3
    assert equal(plain.state.module.parameters(), graphed.state.module.parameters())


def on_gpu(objective=None, teacher=None, module=None):
    """As much of a step on a GPU as `obstacle` looks at."""
    state = SimpleNamespace(
        device=torch.device("cuda"), module=module or torch.nn.Linear(2, 2), teacher=teacher
    )
    return SimpleNamespace(state=state, objective=objective or Eva())


def test_reasons_not_to_capture():
    hog = load_teacher("hog", grid=(4, 4), device="cpu")
    assert obstacle(on_gpu()) is None
    assert obstacle(on_gpu(teacher=hog)) is None
    foreign = torch.nn.Linear(2, 2)
    assert "Linear" in obstacle(on_gpu(teacher=foreign))
    assert "'squares'" in obstacle(on_gpu(objective=make_step().objective))
    hooked = torch.nn.Sequential(torch.nn.Linear(2, 2))
    hooked[0].register_forward_hook(lambda *_: None)
    assert obstacle(on_gpu(module=hooked)) == "0 has hooks, which a graph would leave out"


def test_of_several_processes_the_reason_is_logged(caplog):
    """FSDP2 adds its methods to the class of a module that it shards."""

    class Sharded(torch.nn.Linear):
        def set_requires_gradient_sync(self, _): ...

    with caplog.at_level("INFO"):
        graphed = CapturedStep(on_gpu(module=Sharded(2, 2)), "auto")
    assert "the step is not captured as a CUDA graph: the module is sharded" in caplog.text
    assert not graphed._wanted


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or build.is_loaded(), reason="needs an NVIDIA GPU"
)
@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate": 2, "ema": 0.9, "drop_path": 0.2}, {"precision": "fp16"}],
    ids=["plain", "micro-batches, average, drop-path", "fp16"],
)
def test_captured_and_eager_steps_give_the_same_bits(tmp_path, options):
    tiny = dict(
        model="eva_ti_patch16_96", depth=3, embed_dim=64, num_heads=2, mlp_hidden=160, steps=12,
        batch_size=8, log_every=1, workers=0, progress=False, device="cuda", teacher="hog",
        drop_path=0.0, kernels="triton",
    )  # fmt: skip
    found = {}
    for graph in ("off", "on", "auto"):
        result = eva_fast.pretrain(out=tmp_path / graph, graph=graph, **{**tiny, **options})
        lines = (result.out / "metrics.jsonl").read_text().splitlines()
        losses = [json.loads(line)["loss"] for line in lines]
        found[graph] = losses, list(result.model.state_dict().values())
    for graph in ("on", "auto"):
        assert found[graph][0] == found["off"][0]
        assert equal(found[graph][1], found["off"][1])
