"""`eva-fast plan`: does a run fit, how fast will it go, how long will it take. Every figure of time
is predicted; memory and arithmetic are counted; what is assumed is listed with them."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, overload

import torch

from eva_fast.config import Config, DataConfig
from eva_fast.errors import UsageError
from eva_fast.keywords import RunOptions, Unpack, documented
from eva_fast.options import fit
from eva_fast.planning.costs import Costs
from eva_fast.planning.devices import device as find_device
from eva_fast.planning.rates import FP8, Device
from eva_fast.planning.result import Option, Plan
from eva_fast.planning.run import PlannedRun
from eva_fast.planning.students import OURS, check_formulation
from eva_fast.train import RunLength
from eva_fast.train.sharding import usual

if TYPE_CHECKING:
    from eva_fast.planning.simulate import Simulation

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": FP8}


@overload
def plan(
    hardware: str | None = None,
    gpus: int = 1,
    *,
    images: float | None = None,
    formulation: str = OURS,
    require_fit: bool = True,
    simulate: Literal[False] = False,
    **options: Unpack[RunOptions],
) -> Plan: ...


@overload
def plan(
    hardware: str | None = None,
    gpus: int = 1,
    *,
    simulate: Literal[True],
    **options: Unpack[RunOptions],
) -> "Simulation": ...


@documented(Config)
def plan(
    hardware: str | None = None,
    gpus: int = 1,
    *,
    images: float | None = None,
    formulation: str = OURS,
    require_fit: bool = True,
    simulate: bool = False,
    **options: Unpack[RunOptions],
) -> "Plan | Simulation":
    """Plans what `eva_fast.pretrain(**options)` would do: memory, speed and days.

    Args:
        hardware: a100-40, a100-80, h100, h100-pcie, h200, b200, or cpu (measured here, fp32); by
            default cpu where device="cpu", else h100.
        gpus: number of devices, one process of a run each.
        images: images a pass; by default as many as `data` has.
        formulation: eva_fast, tuned (well-written PyTorch) or official.
        require_fit: ValueError when no cut of the batch fits; otherwise `best` is None.
        simulate: run a real step on fake tensors instead, and count what each of the GPUs holds and
            sends: returns a Simulation.
        options: those of `pretrain`, with its defaults. The teacher by any name whose sizes are
            known without weights (`eva_fast.planning.teachers`).

    Returns a Plan: the run as asked, and cuts of the per-GPU batch, each at most half of the last,
    with and without activation checkpointing.
    ValueError for bad use, naming what is possible.
    """
    config = Config.from_options(dict(options))
    if simulate:
        return plan_simulation(config, gpus, hardware)
    return plan_run(
        config, hardware, gpus, images=images, formulation=formulation, require_fit=require_fit
    )


def plan_run(
    config: Config,
    hardware: str | None = None,
    gpus: int = 1,
    *,
    images: float | None = None,
    formulation: str = OURS,
    require_fit: bool = True,
) -> Plan:
    """`plan` for a ready configuration."""
    if images is not None and config.data.data == DataConfig().data:  # other images than those
        config = replace(config, data=replace(config.data, data="images"))
    config = config.settled()
    found = find_device(_checked(config, hardware, gpus, formulation), formulation)
    batch, precision = config.optim.batch_size, _precision(config, found)
    if found.kind == "cpu" and gpus > 1:
        raise UsageError("the CPU is one device: gpus must be 1")
    images = float(_count_images(config)) if images is None else fit("images", float, images)
    if not 0 < images < math.inf:
        raise UsageError(f"images must be above 0, got {images:g}")
    run = PlannedRun.of(config, DTYPES[precision], found.kind)
    if formulation not in (OURS, *run.baselines):
        raise UsageError(
            f"formulation {formulation!r} is none of the objective {run.objective.name!r}: with this "
            f"student there are {', '.join((OURS, *run.baselines))}"
        )
    costs = Costs(
        device=found, run=run, gpus=gpus, batch=batch, formulation=formulation, sharding="replicate",
        share=config.run.grad_checkpointing_share, ema=config.optim.ema > 0,
    )  # fmt: skip
    share = batch // gpus
    sharding = _sharding(config, costs.count(share).parameters, gpus, found)
    costs = replace(costs, sharding=sharding)
    if share % config.optim.accumulate:
        raise UsageError(
            f"the {share} images of a GPU are not a multiple of accumulate {config.optim.accumulate}"
        )
    asked = costs.option(share // config.optim.accumulate, config.run.grad_checkpointing)
    options = tuple(
        costs.option(micro, checkpointing)
        for micro in _cuts(share)
        for checkpointing in ((False, True) if run.can_recompute else (False,))
    )
    fitting = [o for o in options if o.fits]
    best = max(fitting, key=lambda o: o.images_per_second(gpus), default=None)
    if best is None and require_fit:
        raise _too_large(config.model.model, found, options)
    return Plan(
        model=config.model.model,
        objective=run.objective.name,
        teacher=run.teacher.name if run.teacher else "none",
        sizes=run.sizes,
        device=found,
        gpus=gpus,
        batch=batch,
        precision=precision,
        formulation=formulation,
        sharding=sharding,
        epochs=_epochs(config, images),
        images=images,
        count=costs.count(best.micro_batch if best else share),
        options=options,
        asked=asked,
        best=best,
    )


def plan_simulation(config: Config, gpus: int, hardware: str | None = None) -> "Simulation":
    """What each of `gpus` GPUs would hold and send in a step of the run of `config`
    (`eva_fast.planning.simulate`), in the precision that a GPU has by default."""
    from eva_fast.planning.simulate import simulate

    config = config.settled()
    found = find_device(_checked(config, hardware or "h100", gpus, OURS), OURS)
    if (config.optim.batch_size // gpus) % config.optim.accumulate:
        raise UsageError(
            f"the {config.optim.batch_size // gpus} images of a GPU are not a multiple of accumulate "
            f"{config.optim.accumulate}"
        )
    return simulate(config, gpus, DTYPES[_precision(config, found)], found.gpus_per_node)


def _checked(config: Config, hardware: str | None, gpus: int, formulation: str) -> str:
    """The name of the hardware, once the rest is known to be possible."""
    check_formulation(formulation)
    if gpus < 1:
        raise UsageError(f"gpus must be at least 1, got {gpus}")
    if config.optim.batch_size % gpus:
        raise UsageError(f"batch_size {config.optim.batch_size} is not a multiple of {gpus} GPUs")
    return hardware or ("cpu" if config.run.device == "cpu" else "h100")


def _sharding(config: Config, parameters: int, gpus: int, device: Device) -> str:
    """As the run would have it."""
    if gpus == 1:
        return "replicate"
    nodes = max(1, gpus // device.gpus_per_node)
    asked = config.run.sharding
    return usual(parameters, nodes) if asked == "auto" else asked


def _precision(config: Config, device: Device) -> str:
    """What the blocks compute in; rates of the CPU are of fp32 alone."""
    if device.kind == "cpu":
        return "fp32"
    return "bf16" if config.run.precision == "auto" else config.run.precision


def _count_images(config: Config) -> int:
    from eva_fast.data import open_source
    from eva_fast.data.decode.formats import reading_arrays

    with reading_arrays(config.data.channels != 3):
        return len(open_source(config.data.data))


def _epochs(config: Config, images: float) -> float:
    """Passes over the data, by the rule of `pretrain`."""
    batch = config.optim.batch_size
    length = RunLength.of(config, max(1, int(images) // batch))
    return length.total * batch / images


def _too_large(model: str, device: Device, options: tuple[Option, ...]) -> UsageError:
    least: Any = min(options, key=lambda o: o.memory.total).memory
    kinds = ", ".join(f"{k} {v / 1e9:.1f}" for k, v in least.by_kind().items() if v)
    return UsageError(
        f"{model} does not fit on {device.title} ({device.memory_bytes / 1e9:.0f} GB): the "
        f"smallest cut, with activation checkpointing, needs {least.total / 1e9:.1f} GB ({kinds}); "
        "take a smaller model or other hardware"
    )


def _cuts(batch: int) -> list[int]:
    """Micro-batches that divide a device's batch: itself, then each time the largest that is at
    most half as big, down to single images."""
    cuts = [batch]
    while cuts[-1] > 1:
        cuts.append(next(n for n in range(cuts[-1] // 2, 0, -1) if batch % n == 0))
    return cuts
