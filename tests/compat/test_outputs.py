"""log.txt and checkpoint-N.pth, of what a run has written."""

import json

import pytest

from eva_fast.compat.outputs import Outputs, check_folder, epochs, mean_rate
from eva_fast.config import Config
from eva_fast.errors import UsageError
from eva_fast.train import RunLength

# Of the published log of EVA-01 (EVA-01/logs/pt/eva_mim_pt_30m_150ep_log.txt): 7,242 steps an epoch.
STEPS = 7242
PUBLISHED = {0: 0.00024998273838293167, 1: 0.0007500172616170684, 149: 1.0037180089047582e-05}


def a_run(folder, lines, **options):
    """(the folder as that of a run, its configuration and length)."""
    config = Config.from_options({"data": "x", "out": str(folder), **options})
    (folder / "environment.json").write_text(json.dumps({"parameters": 1012229632}))
    (folder / "config.yaml").write_text("")
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    return folder, config


def test_the_published_logs_rates_and_names(tmp_path):
    lines = [{"step": STEPS * 2, "loss": -0.7, "grad_norm": 0.1}]
    out, config = a_run(tmp_path, lines, recipe="eva01")
    length = RunLength.of(config, STEPS)
    for epoch, rate in PUBLISHED.items():
        assert mean_rate(length, config.optim, epoch) == pytest.approx(rate, rel=1e-11), epoch
    found = list(epochs(out, config, length))
    assert [line["epoch"] for line in found] == [0, 1]
    for line, rate in zip(found, PUBLISHED.values(), strict=False):
        assert line["train_lr"] == line["train_min_lr"] == pytest.approx(rate, rel=1e-11)
        assert line["n_parameters"] == 1012229632
    official = {
        "train_lr", "train_min_lr", "train_all_loss_mean", "train_loss", "train_loss_scale",
        "train_weight_decay", "train_momentum", "train_grad_norm", "test_loss", "epoch",
        "n_parameters",
    }  # fmt: skip
    assert found[0].keys() == official - {"train_loss_scale", "test_loss"}
    assert found[0]["train_momentum"] == 0.98 and found[0]["train_weight_decay"] == 0.05


def test_means_over_the_steps_of_an_epoch(tmp_path):
    """Epochs of 4 steps, log points after 3 each; the run went back from step 6 to 3. A window that was
    not finite has no loss."""
    lines = [
        {"step": 3, "loss": 1.0, "grad_norm": 3.0},
        {"step": 6, "loss": None, "grad_norm": 9.0},
        {"step": 6, "loss": 2.0, "grad_norm": 6.0},
        {"step": 9, "loss": 4.0, "grad_norm": None},
    ]
    out, config = a_run(tmp_path, lines, epochs=3, warmup_steps=0)
    first, second = epochs(out, config, RunLength.of(config, 4))
    assert first["train_loss"] == first["train_all_loss_mean"] == (3 * 1 + 1 * 2) / 4
    assert first["train_grad_norm"] == (3 * 3 + 1 * 6) / 4
    assert second["train_loss"] == (2 * 2 + 2 * 4) / 4 and second["train_grad_norm"] == 6


def test_a_line_as_soon_as_an_epoch_is_told(tmp_path):
    """`on_step` comes before the log point of its step."""
    out, config = a_run(tmp_path, [], epochs=3, warmup_steps=0, log_every=2)
    outputs = Outputs(out, config, RunLength.of(config, 4))
    metrics, seen = [], []
    for step in range(1, 13):
        outputs.on_step(step)
        seen.append(len((out / "log.txt").read_text().splitlines()) if step > 4 else 0)
        if step % 2 == 0:
            metrics.append({"step": step, "loss": float(step), "grad_norm": 1.0})
            text = "".join(json.dumps(line) + "\n" for line in metrics)
            (out / "metrics.jsonl").write_text(text)
    assert seen == [0] * 4 + [1] * 4 + [2] * 4
    outputs.finish()
    found = [json.loads(line) for line in (out / "log.txt").read_text().splitlines()]
    assert [line["train_loss"] for line in found] == [3.0, 7.0, 11.0]


@pytest.mark.parametrize("name", ["checkpoint-3.pth", "checkpoint-3", "log.txt"])
def test_an_official_runs_folder_stays(tmp_path, name):
    check_folder(tmp_path / "none")
    check_folder(tmp_path)
    (tmp_path / name).touch()
    with pytest.raises(UsageError, match=f"holds {name} of another program.*another --output_dir"):
        check_folder(tmp_path)
    a_run(tmp_path, [])
    check_folder(tmp_path)
