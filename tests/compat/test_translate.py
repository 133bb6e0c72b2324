"""What official command lines become: the recipe, MAE's students, teachers, schedules, launchers."""

import pytest

from eva_fast.compat import flags, launch
from eva_fast.compat.official import FLAGS
from eva_fast.compat.translate import epoch_steps, options_of
from eva_fast.config import Config
from eva_fast.errors import UsageError
from eva_fast.model import named_sizes
from eva_fast.train import RunLength
from eva_fast.world import World, asked_for
from tests.compat.docs import command

PROCESSES, IMAGES = 128, 29_660_000


def read(*words):
    return flags.read(FLAGS, words)


def config_of(*words, processes=PROCESSES, images=IMAGES):
    return Config.from_options(options_of(read(*words), processes, images))


# How a run is kept, not what it computes.
KEPT = {
    "recipe", "data", "out", "seed", "resume", "rewinds", "spike", "checkpoint_every", "log_every",
    "track", "workers",
}  # fmt: skip


def test_the_recipe_is_the_official_launch():
    """`recipe="eva01"` and the command line of the official README: the same run."""
    ours, theirs = Config.from_options({"recipe": "eva01"}), config_of(*command())
    steps = epoch_steps(read(*command()), PROCESSES, IMAGES)
    assert RunLength.of(ours, steps) == RunLength.of(theirs, steps)
    same = {"warmup_steps": None, "img_size": None}  # said by epochs, and by the name
    differ = {
        name: (value, theirs.options()[name])
        for name, value in ours.options().items()
        if name not in KEPT | same.keys() and value != theirs.options()[name]
    }
    assert differ == {}
    assert theirs.model.img_size == named_sizes(ours.model.model).img_size == 224


def test_the_recipe_is_the_published_one_and_the_launch():
    published = Config.from_options({"recipe": "eva-g14"}).options()
    launched = Config.from_options({"recipe": "eva01"}).options()
    differ = {name for name in published if published[name] != launched[name]}
    assert differ == {"recipe", "precision", "sharding"}


@pytest.mark.parametrize(
    "name, width, depth, patch, decoder",
    [
        ("mae_vit_base_patch16_dec512d8b", 768, 12, 16, 8),
        ("mae_vit_large_patch16_dec512d4b", 1024, 24, 14, 4),
        ("mae_vit_huge_patch14_dec512d8b", 1280, 32, 14, 8),
    ],
)
def test_students_of_mae(name, width, depth, patch, decoder):
    config = config_of("--mae", "--model", name)
    sizes = named_sizes(config.model.model, img_size=config.model.img_size)
    assert (sizes.embed_dim, sizes.depth, sizes.patch_size) == (width, depth, patch)
    assert sizes.mlp_hidden == 4 * width and sizes.img_size == 224
    found = config.objective
    assert (found.objective, found.decoder_dim, found.decoder_depth) == ("mae", 512, decoder)
    assert found.decoder_heads == 16 and found.mask_count is None and config.model.drop_path == 0
    with pytest.raises(UsageError, match="--model eva_g_patch14_224: with --mae it is one of mae_"):
        config_of("--mae")


def test_teachers(tmp_path):
    kept = tmp_path / "ViT-L-14-336px.pt"
    words = ["--clip_model", "ViT-L/14@336px", "--cache_dir", str(tmp_path), "--output_dir", "x"]
    assert config_of(*words).teacher.teacher == "openai/ViT-L-14-336"
    (line,) = flags.warnings(FLAGS, read(*words))
    assert line.startswith(f"--cache_dir {tmp_path}: it does not hold")
    kept.touch()
    assert config_of(*words).teacher.teacher == str(kept)
    assert flags.warnings(FLAGS, read(*words)) == []
    assert config_of("--clip_model", str(kept)).teacher.teacher == str(kept)


def test_the_warm_up_is_whole():
    """The official schedule cuts it at nothing; eva_fast's own at a tenth of the run."""
    words = ["--epochs", "10", "--warmup_epochs", "4"]
    config = config_of(*words, processes=1, images=320)
    assert RunLength.of(config, 10) == RunLength(total=100, warmup=40, steps_per_epoch=10)
    config = config_of(*words, "--warmup_steps", "7", processes=1, images=320)
    assert RunLength.of(config, 10).warmup == 7
    assert config_of("--warmup_epochs", "0").optim.warmup_steps == 0
    with pytest.raises(UsageError, match="warm-up of 20 steps is longer than the run of 1 epochs"):
        config_of("--epochs", "1", processes=1, images=320)


def test_epochs_are_as_long_as_officially():
    """The official script divides thrice and rounds down each time."""
    for images in (1, 255, 256, 9999, 29_660_001):
        said = read("--batch_size", "8", "--update_freq", "4")
        assert epoch_steps(said, 8, images) == max(1, images // 8 // 8 // 4)


def test_precision():
    def precision(*words, device="cuda"):
        return options_of(read(*words), 1, 100, device)["precision"]

    assert precision() == "fp16" and precision("--bf16") == "bf16"
    assert precision(device="cpu") == precision("--bf16", device="cpu") == "fp32"


def settled(environment, local_rank=-1):
    launch.settle(environment, local_rank)
    return asked_for(environment)


def test_launchers():
    torchrun = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert settled(dict(torchrun)) == World(3, 8, 1, 2)
    # An old torch.distributed.launch: the rank on the machine is a flag.
    assert settled({"RANK": "3", "WORLD_SIZE": "8"}, 1).local_rank == 1
    assert settled({}) == World() and settled({"SLURM_STEP_NUM_TASKS": "1"}) == World()
    meet = {"MASTER_ADDR": "a", "MASTER_PORT": "1"}
    mpi = {
        "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    }  # fmt: skip
    slurm = {
        "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1",
        "SLURM_STEP_TASKS_PER_NODE": "2(x4)",
    }  # fmt: skip
    for started in (mpi, slurm):
        assert settled({**started, **meet}) == World(3, 8, 1, 2)
        assert settled({**started, **torchrun, "RANK": "5"}).rank == 5  # torchrun inside of it
        with pytest.raises(UsageError, match="started 8 processes: set MASTER_ADDR"):
            settled(dict(started))


@pytest.mark.parametrize("flag", ["--batch_size", "--update_freq"])
def test_a_batch_of_no_images_is_refused_by_its_flag(flag):
    with pytest.raises(UsageError, match=f"{flag} must be at least 1, got 0"):
        config_of("--data_path", "photos", flag, "0")
