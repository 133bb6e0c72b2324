"""`eva-fast plan`."""

from eva_fast.cli.words import NO_OPTIONS, show
from eva_fast.config import Config


def plan(
    config: Config = NO_OPTIONS,
    hardware: str | None = None,
    images: float | None = None,
    formulation: str = "eva_fast",
    gpus: int = 1,
    simulate: bool = False,
    json: bool = False,
) -> None:
    """Predict memory, speed and days of a pretrain with the same options, before buying it. Counted
    and predicted, not measured. Shows the run as asked and the quickest that fits.

    Args:
        config: the run.
        hardware: a100-40, a100-80, h100, h100-pcie, h200, b200, or cpu (measured here, fp32); by
            default cpu where --device cpu, else h100.
        images: images a pass; by default as many as --data has.
        formulation: eva_fast, tuned (well-written PyTorch) or official.
        gpus: how many devices; pretrain has as many as torchrun starts processes.
        simulate: run a real step on fake tensors, and count what each of the GPUs holds and sends.
        json: print JSON instead of tables.
    """
    from eva_fast.planning.planner import plan_run, plan_simulation
    from eva_fast.planning.tables import render

    if simulate:
        counted = plan_simulation(config, gpus, hardware)
        show(counted.to_dict(), None if json else counted.table())
        return
    found = plan_run(config, hardware, gpus, images=images, formulation=formulation)
    show(found.to_dict(), None if json else render(found))
