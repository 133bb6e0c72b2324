"""A run's checkpoints, each scored at its minute."""

import copy
import json

import numpy as np
import pytest
from PIL import Image

import eva_fast
from bench import learning_curve

TINY = dict(
    model="eva_ti_patch16_48", embed_dim=32, depth=1, num_heads=2, mlp_hidden=48, batch_size=8,
    steps=4, checkpoint_every=2, keep_checkpoints=5, log_every=2, workers=0, device="cpu",
    kernels="torch", progress=False,
)  # fmt: skip


def labelled(folder):
    """Two classes of noise, one bright, one dark."""
    random = np.random.default_rng(0)
    for name, low in (("bright", 128), ("dark", 0)):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            pixels = random.integers(low, low + 128, (48, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return str(folder)


def test_each_checkpoint_is_a_point(tmp_path):
    run, data = tmp_path / "run", labelled(tmp_path / "data")
    result = eva_fast.pretrain(data, out=run, **TINY)
    measured = learning_curve.measure(run, data)
    assert [point["step"] for point in measured["points"]] == [2, 4]
    minutes = [point["minutes"] for point in measured["points"]]
    assert 0 < minutes[0] <= minutes[1]
    assert {row["features"] for row in measured["beside"]} >= {"random init", "8x8 pixels"}
    # the last checkpoint is the run's own weights
    whole = json.loads((run / "eval.json").read_text())["results"][0]
    last = measured["points"][-1]
    assert (last["knn"], last["linear"]) == (whole["knn"], whole["linear"])
    assert last["loss"] == result.metrics["loss"]

    other = copy.deepcopy(measured)
    for point in other["points"]:
        point["knn"] += 2
    other["points"].append({**other["points"][-1], "step": 6})  # the first has no such step
    both = learning_curve.averaged([measured, other])
    assert [point["step"] for point in both["points"]] == [2, 4]
    assert both["points"][-1]["knn"] == pytest.approx(last["knn"] + 1)
    assert both["points"][-1]["knn_spread"] == pytest.approx(2**0.5)
    assert both["points"][-1]["linear_spread"] == 0
    picture = learning_curve.draw(both, tmp_path / "curve.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert learning_curve.table(learning_curve.averaged([measured])).count("\n") == 3
