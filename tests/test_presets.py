"""Recipes: the published numbers, learning rates that follow the batch, what a person says on top."""

import pytest

from eva_fast.config import Config
from eva_fast.errors import UsageError
from eva_fast.presets import RECIPES

# Batch, peak, end and first learning rate; epochs of warm-up and in all; betas, eps, decay, clipping;
# drop-path; share of an image in a crop.
PUBLISHED = {
    "fd-b16": (2048, 1.2e-3, 2e-5, 2e-6, 10, 300, (0.9, 0.999), 1e-8, 0.05, 3.0, 0.2, (0.08, 1.0)),
    "fd-l14": (2048, 1.2e-3, 2e-5, 2e-6, 10, 300, (0.9, 0.999), 1e-8, 0.05, 3.0, 0.3, (0.08, 1.0)),
    "fd-swinv2-b": (2048, 8e-4, 4e-5, 4e-6, 10, 300, (0.9, 0.999), 1e-8, 0.05, 3.0, 0.3, (0.08, 1)),
    "eva-g14": (4096, 1e-3, 1e-5, 0.0, 2, 150, (0.9, 0.98), 1e-6, 0.05, 3.0, 0.1, (0.2, 1.0)),
    "eva01": (4096, 1e-3, 1e-5, 0.0, 2, 150, (0.9, 0.98), 1e-6, 0.05, 3.0, 0.1, (0.2, 1.0)),
    "eva-l14": (4096, 2.4e-3, 1e-5, 0.0, 2, 150, (0.9, 0.95), 1e-6, 0.05, 3.0, 0.0, (0.2, 1.0)),
    "mae-b16": (4096, 2.4e-3, 0.0, 0.0, 40, 1600, (0.9, 0.95), 1e-8, 0.05, 0.0, 0.0, (0.2, 1.0)),
    "vqkd-b16": (512, 2e-4, 1e-5, 0.0, 10, 100, (0.9, 0.99), 1e-8, 1e-4, 0.0, 0.0, (0.08, 1.0)),
    "beit2-b16": (2048, 1.5e-3, 1e-5, 0, 10, 300, (0.9, 0.98), 1e-8, 0.05, 3.0, 0.0, (0.2, 1.0)),
}


def test_the_published_numbers():
    assert set(PUBLISHED) == set(RECIPES)
    for name, expected in PUBLISHED.items():
        config = Config.from_options({"recipe": name})
        o = config.optim
        found = (
            o.batch_size, o.lr, o.min_lr, o.warmup_lr, o.warmup_epochs, o.epochs, o.betas, o.eps,
            o.weight_decay, o.clip_grad, config.model.drop_path, config.data.crop_scale,
        )  # fmt: skip
        for have, want in zip(found, expected, strict=True):
            assert have == pytest.approx(want, rel=1e-12), (name, found)


def test_what_is_said_wins():
    said = {"recipe": "eva-g14", "teacher": "builtin", "epochs": 3, "betas": (0.8, 0.9)}
    config = Config.from_options(said)
    assert (config.teacher.teacher, config.optim.epochs) == ("builtin", 3)
    assert config.optim.betas == (0.8, 0.9) and config.model.model == "eva_g_patch14_224"


def test_rates_follow_the_batch_where_they_did():
    rates = {
        name: Config.from_options({"recipe": name, "batch_size": 64}).optim.lr for name in RECIPES
    }
    assert rates["eva-g14"] == 1e-3 and rates["vqkd-b16"] == 2.5e-5
    assert rates["mae-b16"] == rates["eva-l14"] == 1.5e-4 / 4
    assert Config.from_options({"recipe": "mae-b16", "lr": 0.5}).optim.lr == 0.5
    with pytest.raises(UsageError, match="batch_size must be of type int"):
        Config.from_options({"recipe": "mae-b16", "batch_size": "many"})


def test_an_objectives_own_default_is_below_what_is_said_and_its_recipe():
    from eva_fast.objectives import open_objective

    def crop(**said):
        return Config.from_options(said).data.crop_scale

    fd = open_objective("fd")
    assert crop(objective="fd") == crop(objective=fd) == crop(objective=type(fd)) == (0.67, 1.0)
    assert crop(objective="fd", crop_scale=(0.3, 0.9)) == (0.3, 0.9)
    assert crop(recipe="fd-b16") == crop(recipe="fd-b16", objective="eva") == (0.08, 1.0)
    assert crop() == crop(objective="eva") == crop(objective="pixels") == (0.2, 1.0)


def test_the_file_of_a_run_is_the_run(tmp_path):
    """`config.yaml` holds what the recipe came to, and reads back the same."""
    import yaml

    config = Config.from_options({"recipe": "eva-g14", "lr": 3e-4})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.options()))
    assert Config.from_yaml(path) == config and config.options()["mask_count"] == 105


def test_an_unknown_name_is_one_error_with_the_nearest():
    with pytest.raises(UsageError, match="unknown recipe 'eva-g16'; did you mean 'eva-g14'"):
        Config.from_options({"recipe": "eva-g16"})
    with pytest.raises(UsageError, match="unknown recipe 'x'; there are"):
        Config.from_options({"recipe": "x"})
