"""`eva-fast plan`."""

from eva_fast.cli.words import show


def plan(
    model: str = "eva_g_patch14_224",
    device: str = "h100",
    gpus: int = 1,
    batch: int = 4096,
    precision: str = "bf16",
    formulation: str = "eva_fast",
    sharding: str = "none",
    epochs: float = 150,
    images: float = 29.6e6,
    teacher: bool = True,
    json: bool = False,
) -> None:
    """Predict memory, speed and days of a run before buying it. Counted and predicted, not measured.

    Args:
        model: student by name.
        device: a100-40, a100-80, h100, h100-pcie, h200, b200, or cpu (measured here).
        gpus: how many of them.
        batch: images a step over all devices.
        precision: bf16, fp16 or fp32.
        formulation: eva_fast, tuned (well-written PyTorch) or official.
        sharding: none, optimizer (ZeRO-1) or full (FSDP).
        epochs: passes over the data.
        images: images a pass.
        teacher: whether CLIP ViT-L/14 runs beside the student.
        json: print JSON instead of tables.
    """
    from eva_fast.plan import plan as make_plan
    from eva_fast.plan.tables import render

    found = make_plan(
        model, device, gpus, batch, precision=precision, formulation=formulation,
        sharding=sharding, epochs=epochs, images=images, teacher=teacher,
    )  # fmt: skip
    show(found.to_dict(), None if json else render(found))
