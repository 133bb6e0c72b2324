"""Loggers by the real libraries, without a network: what a run sends is read back from their files."""

import json
import struct
import sys

import pytest

import eva_fast
from eva_fast.errors import UsageError
from eva_fast.train.loggers import LOGGERS, check_installed, names_of, open_loggers
from eva_fast.train.telemetry import Telemetry

BLOCK = 32768
OPTIONS = {"lr": 1e-3, "model": "eva_ti_patch16_96"}
SENT = {2: {"loss": -0.25, "gain": 0.125}, 4: {"loss": -0.5, "gain": 0.25}}


def send(name, out):
    """Two log points, the second by a run that goes on."""
    out.mkdir()
    for step, values in SENT.items():
        told = {
            "step": step, **values, "baseline_loss": -0.1, "images_per_second": 1.0, "data_wait": 0.0,
            "seconds_left": 1.0,
        }  # fmt: skip
        loggers = open_loggers(name, out, OPTIONS)
        with Telemetry(
            out, first_step=step - 1, total=4, progress=False, tracked=loggers
        ) as telemetry:
            telemetry.record(**told)


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    send("tensorboard", tmp_path / "run")
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for name in ("loss", "gain"):
        points = {event.step: event.value for event in found.Scalars(name)}
        assert points == {step: values[name] for step, values in SENT.items()}


def test_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    send("mlflow", tmp_path / "run")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "run" / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("eva_fast")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "run" and run.info.status == "FINISHED"
    assert run.data.params == {name: str(value) for name, value in OPTIONS.items()}
    for name in ("loss", "gain"):
        points = {m.step: m.value for m in client.get_metric_history(run.info.run_id, name)}
        assert points == {step: values[name] for step, values in SENT.items()}


def records(path):
    """What a .wandb file holds: a log of LevelDB's form behind 7 bytes, of protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = BLOCK - at % BLOCK
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


@pytest.mark.slow
def test_wandb(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    send("wandb", tmp_path / "run")
    points, named = {}, set()
    for file in (tmp_path / "run").glob("wandb/offline-run-*/*.wandb"):
        for record in records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                named.add((record.run.project, record.run.display_name, record.run.run_id))
            elif kind == "history":
                items = {i.key or i.nested_key[0]: i.value_json for i in record.history.item}
                points[int(items["_step"])] = {n: float(items[n]) for n in ("loss", "gain")}
    assert points == SENT
    assert named == {("eva_fast", "run", (tmp_path / "run" / "wandb-id").read_text())}


def test_a_run_tells_its_loggers(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    eva_fast.pretrain(
        out=tmp_path, teacher="hog", depth=1, embed_dim=32, num_heads=2, mlp_hidden=48, batch_size=4,
        steps=2, workers=0, kernels="torch", device="cpu", track="tensorboard",
    )  # fmt: skip
    assert list((tmp_path / "tensorboard").glob("events*"))


class Broken:
    """A library whose server is gone."""

    def __init__(self, *_):
        self.asked = 0

    def add(self, step, values):
        self.asked += 1
        raise ConnectionError("nobody answers")

    close = __init__


def test_a_server_that_is_gone_ends_no_run(tmp_path, monkeypatch, caplog):
    broken = Broken()
    monkeypatch.setitem(LOGGERS, "mlflow", lambda out, options: broken)
    send("mlflow", tmp_path / "run")
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert steps == list(SENT)
    assert "Broken is told no more of this run" in caplog.text and "nobody answers" in caplog.text


def test_one_that_does_not_begin_is_named(tmp_path, monkeypatch):
    closed = []

    class First(Broken):
        def close(self):
            closed.append(self)

    def no_key(out, options):
        raise RuntimeError("No API key configured.\nLog in.")

    monkeypatch.setitem(LOGGERS, "tensorboard", First)
    monkeypatch.setitem(LOGGERS, "wandb", no_key)
    with pytest.raises(UsageError, match="track='wandb' does not begin: No API key"):
        open_loggers("tensorboard,wandb", tmp_path, OPTIONS)
    assert len(closed) == 1


def test_names():
    assert names_of("none") == names_of("") == ()
    assert names_of("wandb, mlflow") == ("wandb", "mlflow")
    with pytest.raises(UsageError, match="of tensorboard, wandb, mlflow with commas"):
        names_of("wandb,comet")


@pytest.mark.parametrize("name", LOGGERS)
def test_a_missing_library_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, LOGGERS[name].module, None)
    with pytest.raises(UsageError, match=f"pip install {LOGGERS[name].package}"):
        check_installed(name)
