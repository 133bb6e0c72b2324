"""Several processes train as one: the same samples, the same losses, whatever happens to them."""

import os
import shutil
import signal

import pytest

import eva_fast
from eva_fast.train import checkpoint
from tests.data.pictures import write_shard
from tests.soak.runs import Run
from tests.train.several import (
    LIMIT,
    OPTIONS,
    done,
    ended,
    furthest,
    lines,
    losses,
    pretrain,
    wait_for,
    weights,
    workers_of,
)

pytestmark = [pytest.mark.dist, pytest.mark.slow]
CLOSE = 1e-5


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process that all are compared with."""
    out = tmp_path_factory.mktemp("several") / "alone"
    eva_fast.pretrain(out=out, ema=0.9, **OPTIONS)
    return out


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run of two processes, one of which was killed after a checkpoint; torchrun starts them anew."""
    out = tmp_path_factory.mktemp("several") / "killed"
    run = pretrain(
        2, out, restarts=1, sharding="full", checkpoint_every=4, keep_checkpoints=9, ema=0.9
    )
    wait_for(out / "checkpoints/step_000000004", run)
    os.kill(workers_of(run)[-1], signal.SIGKILL)
    return out, done(run)


def is_close(out, alone):
    assert max(abs(a - b) for a, b in zip(losses(out), losses(alone), strict=True)) < CLOSE
    assert furthest(weights(out), weights(alone)) < CLOSE
    norms = [[line["grad_norm"] for line in lines(folder)] for folder in (out, alone)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


SECOND = {"grad_checkpointing": True, "grad_checkpointing_share": 0.5}


@pytest.mark.parametrize("options", [{"sharding": "replicate"}, {"sharding": "zero2", **SECOND}])
def test_two_processes_learn_what_one_does(tmp_path, alone, options):
    """Also with every second block computed again, and with a clip of all gradients that bites."""
    done(pretrain(2, tmp_path / "run", ema=0.9, **options))
    assert max(line["grad_norm"] for line in lines(alone)) > OPTIONS["clip_grad"]
    is_close(tmp_path / "run", alone)
    assert lines(tmp_path / "run")[-1].keys() >= {"data_waits", "waits_for_others"}


def test_a_codebook_moves_by_the_rows_of_all_processes(tmp_path):
    """And of all micro-batches; paths, which each of them would drop for itself, are not dropped."""
    options = {**OPTIONS, "objective": "vqkd", "codebook_size": 16, "steps": 6, "drop_path": 0.0}
    eva_fast.pretrain(out=tmp_path / "alone", **options)
    done(pretrain(2, tmp_path / "two", **{**options, "sharding": "full", "accumulate": 2}))
    is_close(tmp_path / "two", tmp_path / "alone")


def test_a_killed_process_is_started_again_and_the_run_goes_on(alone, killed):
    out, said = killed
    is_close(out, alone)
    assert "going on from" in said


@pytest.mark.parametrize("processes", [1, 4])
def test_a_run_of_two_goes_on_with_another_number(tmp_path, alone, killed, processes):
    """From a checkpoint in the middle, whose shards are two processes'."""
    out = tmp_path / "run"
    shutil.copytree(killed[0], out)
    for folder in checkpoint.steps_in(out / "checkpoints")[1:]:
        shutil.rmtree(folder)
    options = {"sharding": "full", "ema": 0.9, "resume": "auto"}
    if processes == 1:
        eva_fast.pretrain(out=out, **{**OPTIONS, **options})
    else:
        done(pretrain(processes, out, **options))
    is_close(out, alone)


def test_streams_of_each_process_go_on_where_they_were(tmp_path):
    """Each reads shards of its own: as many processes go on as before, and another number is told."""
    for number in range(4):
        write_shard(tmp_path / f"s-{number}.tar", range(8 * number, 8 * number + 8))
    data = f"pipe:cat {tmp_path}/s-{{0..3}}.tar"
    options = {"steps": 6, "checkpoint_every": 3, "keep_checkpoints": 9}
    done(pretrain(2, tmp_path / "whole", data=data, **options))
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    shutil.rmtree(tmp_path / "part/checkpoints/step_000000006")
    done(pretrain(2, tmp_path / "part", data=data, resume="auto", **options))
    assert furthest(weights(tmp_path / "whole"), weights(tmp_path / "part")) == 0
    with pytest.raises(ValueError, match="world 2, this run has 1"):
        eva_fast.pretrain(
            out=tmp_path / "part", data=data, resume="auto", **{**OPTIONS, **options, "steps": 8}
        )


def test_four_processes_over_twenty_steps(tmp_path):
    """The weights that one process writes, and its losses."""
    options = {**OPTIONS, "steps": 20, "ema": 0.9}
    eva_fast.pretrain(out=tmp_path / "alone", **options)
    done(pretrain(4, tmp_path / "four", **{**options, "sharding": "full"}))
    is_close(tmp_path / "four", tmp_path / "alone")


def test_shards_within_machines_and_copies_between_them(tmp_path, alone):
    """Two machines of two processes each."""
    options = {**OPTIONS, "sharding": "hybrid", "ema": 0.9, "out": tmp_path / "run"}
    run = Run(4, tmp_path / "log", machines=2, **options)
    run.done(LIMIT)
    assert "4 processes, sharding hybrid" in run.log.read_text()
    is_close(tmp_path / "run", alone)


def test_a_flipped_bit_in_any_file_of_two_processes_is_seen(tmp_path, killed):
    root = tmp_path / "checkpoints"
    shutil.copytree(killed[0] / "checkpoints", root)
    *_, before, last = checkpoint.steps_in(root)
    files = sorted(last.iterdir())
    assert {path.name[:4] for path in files} >= {"__0_", "__1_"}
    for victim in files:
        whole = victim.read_bytes()
        victim.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        found = checkpoint.newest(root)
        assert found == before, victim.name
        victim.write_bytes(whole)
    assert checkpoint.newest(root) == last


@pytest.mark.parametrize("who", [slice(1), slice(None)], ids=["one of them", "all of them"])
def test_a_request_to_stop_reaches_all_and_loses_nothing(tmp_path, alone, who):
    out = tmp_path / "run"
    run = pretrain(2, out, checkpoint_every=3, ema=0.9)
    wait_for(out / "checkpoints/step_000000003", run)
    for pid in workers_of(run)[who]:
        os.kill(pid, signal.SIGTERM)
    assert ended(run)[0] == 0
    stopped = lines(out)[-1]["step"] if lines(out) else 0
    assert checkpoint.newest(out / "checkpoints").name >= f"step_{stopped:09d}"
    done(pretrain(2, out, resume="auto", ema=0.9))
    is_close(out, alone)
