"""`eva-fast pretrain`."""

from eva_fast.cli.words import NO_OPTIONS
from eva_fast.config import Config


def pretrain(
    config: Config = NO_OPTIONS,
) -> None:
    """Pre-train a student on images. With no options: the built-in drawings and teacher
    (MobileNetV2), a small ViT, about three minutes on two cores. --config FILE.yaml gives options from a
    file (`config.yaml` of a run is one); flags win over it."""
    from eva_fast.recipes.pretrain import run

    result = run(config)
    first, last = result.metrics.get("first_loss"), result.metrics.get("loss")
    if result.stopped_by:
        print(
            f"stopped by {result.stopped_by}; go on with: eva-fast pretrain "
            f"--config {result.out / 'config.yaml'} --out {result.out} --resume auto"
        )
    elif first is not None and last is not None:
        print(f"loss {first:.4f} -> {last:.4f} (-1 is perfect)")
    print(f"picture     {result.picture}")
    print(f"weights     {result.weights}")
    print(f"metrics     {result.out / 'metrics.jsonl'}")
    print(f"checkpoint  {result.checkpoint}")
