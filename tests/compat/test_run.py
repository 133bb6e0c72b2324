"""The official README's command line, run as people run it: JPEGs in folders, a CLIP file, torchrun."""

import io
import json
import shutil

import pytest
import torch
from PIL import Image

from eva_fast.baselines import OfficialViT
from eva_fast.compat import run_eva_pretraining
from eva_fast.compat.run_eva_pretraining import main
from eva_fast.compat.translate import options_of
from eva_fast.config import Config
from eva_fast.data import open_source
from eva_fast.weights import infer_sizes, read
from tests.compat.docs import changed, command
from tests.teachers.openai_tower import Clip
from tests.train.several import done, losses, torchrun

PROGRAM = "eva_fast.compat.run_eva_pretraining"
SMALL = dict(
    model="eva_ti_patch14_224", input_size=56, second_input_size=56, num_mask_patches=6,
    batch_size=4, epochs=2, warmup_epochs=1,
)  # fmt: skip

MORE = ["--min_mask_patches_per_block", "2", "--num_workers", "0"]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with 8 built-in drawings as JPEGs in two folders, and a tiny CLIP in OpenAI's naming."""
    root = tmp_path_factory.mktemp("official")
    source = open_source("builtin")
    for number in range(8):
        image = Image.open(io.BytesIO(source.item(number).image)).convert("RGB")
        path = root / "images" / f"class_{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    (root / "clip").mkdir()
    torch.manual_seed(0)
    clip = Clip(size=56, patch=14, width=64, heads=1, layers=1, hidden=64, dim=16)
    torch.save(clip.state_dict(), root / "clip" / "ViT-L-14.pt")
    return root


def words(here, out, **values):
    """The page's command with small values."""
    places = dict(
        data_path=here / "images", val_data_path=here / "images", cache_dir=here / "clip",
        output_dir=out, log_dir=out / "tb_log",
    )  # fmt: skip
    return [*changed(command(), **places, **{**SMALL, **values}), *MORE]


def rows(out):
    return [json.loads(line) for line in (out / "log.txt").read_text().splitlines()]


def official(path):
    """The official code's student with the weights of a checkpoint, strictly."""
    state = torch.load(path, weights_only=True)["model"]
    model = OfficialViT(infer_sizes(state, {"num_heads": "3"}))
    model.load_state_dict(state)
    return model


@pytest.mark.dist
def test_two_steps_on_two_processes(here, tmp_path):
    out = tmp_path / "out"
    said = done(torchrun(2, "-m", PROGRAM, *words(here, out)))
    assert "--val_data_path" in said and "--log_dir" in said
    assert said.count("no validation loss is computed") == 1  # the first process says it
    config = Config.from_yaml(out / "config.yaml")
    assert config.optim.batch_size == 8 and config.run.sharding == "zero2"
    assert len(losses(out)) == 2 and all(-1 < loss < 1 for loss in losses(out))
    first, second = rows(out)
    assert [first["train_loss"], second["train_loss"]] == losses(out)
    assert (first["epoch"], second["epoch"]) == (0, 1)
    model = official(out / "checkpoint-1.pth")
    assert first["n_parameters"] == sum(p.numel() for p in model.parameters())
    final = read(out / "model.safetensors")
    assert all(torch.equal(final[name], value) for name, value in model.state_dict().items())
    before = official(out / "checkpoint-0.pth").state_dict()
    assert any(not torch.equal(before[name], final[name]) for name in before)
    assert (out / "tensorboard").is_dir()


def test_it_goes_on_where_it_was_killed(here, tmp_path, monkeypatch):
    """As if killed after two of three epochs: the same files again, to the byte, with the seed that
    chance gave."""
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    smaller = {"kernels": "native", "depth": 1}
    monkeypatch.setattr(
        run_eva_pretraining, "options_of", lambda *given: {**options_of(*given), **smaller}
    )
    out = tmp_path / "out"
    typed = words(here, out, batch_size=8, epochs=3)
    main(typed)
    made = [out / "log.txt", *(out / f"checkpoint-{n}.pth" for n in range(3))]
    before = [path.read_bytes() for path in made]
    shutil.rmtree(out / "checkpoints" / "step_000000003")
    for path in (made[0], made[2], made[3]):
        path.unlink()
    main(typed)
    assert [path.read_bytes() for path in made] == before


def test_wrong_use_is_one_error(here, tmp_path, capsys):
    (tmp_path / "checkpoint-7.pth").touch()
    for typed, message in (
        (["--mixup", "0.8"], "--mixup 0.8: above 0: images are not mixed"),
        (words(here, tmp_path), "holds checkpoint-7.pth of another program"),
        (["--data_path", str(tmp_path / "none")], "none"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(typed)
        said = capsys.readouterr().err
        assert ended.value.code == 2 and "error: " in said and message in said
        assert "Traceback" not in said
