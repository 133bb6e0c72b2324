"""`eva-fast pretrain`."""

from eva_fast.cli.words import NO_OPTIONS
from eva_fast.config import Config


def pretrain(
    config: Config = NO_OPTIONS,
) -> None:
    """Pre-train a student on images. With no options: the built-in drawings and teacher
    (MobileNetV2), a small ViT, about three minutes on two cores. --config FILE.yaml gives options from a
    file (`config.yaml` of a run is one); flags win over it."""
    from eva_fast.recipes.ending import ending
    from eva_fast.recipes.pretrain import run
    from eva_fast.world import asked_for

    result = run(config)
    if asked_for().first:
        print("\n".join(ending(config, result)))
