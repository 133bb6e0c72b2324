"""From the options of a run to what it is made of: device, sizes, samples.

What cannot work on this machine or does not fit together is refused here, before anything is
loaded or written.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from eva_fast.data.loader.workers import can_start, check_count
from eva_fast.device import choose_device
from eva_fast.errors import UsageError
from eva_fast.files import RUN_PICTURES, cpu_count
from eva_fast.model import BackboneSizes, ModelSizes, SwinSizes, is_beit, named_sizes
from eva_fast.model.config import ModelConfig
from eva_fast.model.networks.sizes import trains_on_one_image
from eva_fast.model.variant import VARIANT_OPTIONS
from eva_fast.objectives.base import Objective
from eva_fast.objectives.request import check_sample
from eva_fast.objectives.setting import Setting, chosen_sizes
from eva_fast.ops.fp8_gemm import has_fp8
from eva_fast.ops.registry import family_obstacle
from eva_fast.train.loggers import check_installed
from eva_fast.train.processes import check_processes
from eva_fast.world import World, asked_for, world

if TYPE_CHECKING:
    from eva_fast.config import Config


def setting_of(config: "Config") -> Setting:
    """What is known before anything is built, of the settled options; ValueError for what cannot run
    here."""
    config = config.settled()
    device, compute_dtype = device_and_dtype(config)
    return Setting(
        config=config,
        sizes=named_sizes(config.model.model, **chosen_sizes(config)),
        device=device,
        compute_dtype=compute_dtype,
    )


def device_and_dtype(config: "Config") -> tuple[torch.device, torch.dtype]:
    """Where the run computes, and in what the student's blocks do."""
    device = choose_device(_own_device(config.run.device, asked_for()))
    precision = config.run.precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    if precision == "fp8":
        _check_fp8(config, device)
        precision = "bf16"  # of all but the products of the blocks
    return device, {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _own_device(name: str, to: World) -> str:
    """Of several processes on a machine each takes a GPU of its own. ValueError where they would share
    one."""
    if to.size == 1 or name == "cpu" or not torch.cuda.is_available():
        return name
    found = torch.cuda.device_count()
    if ":" in name or to.local_size > found:
        raise UsageError(
            f"{to.local_size} processes on this machine need a GPU each; there are {found}, and "
            f"device={name!r}: start as many processes as GPUs, with device='cuda' or 'auto'"
        )
    return f"cuda:{to.local_rank}"


def _check_fp8(config: "Config", device: torch.device) -> None:
    """ValueError where 8-bit products do not run, or only slowly and nobody asked for that."""
    if config.run.kernels == "torch":
        raise UsageError(
            "precision='fp8' is of the fused layers, and kernels='torch' asks for plain ones: leave "
            "kernels at 'auto', or use precision='bf16'"
        )
    if device.type == "cpu" and config.run.device != "cpu":
        raise UsageError(
            "precision='fp8' needs an NVIDIA GPU from Hopper on, and torch sees none: use "
            "precision='bf16'; device='cpu' emulates fp8, slower than any other precision"
        )
    if device.type == "cuda" and not has_fp8(device.index or 0):
        raise UsageError(
            f"precision='fp8' needs an NVIDIA GPU from Hopper on (compute capability 8.9), and this is "
            f"{torch.cuda.get_device_name(device)}: use precision='bf16'"
        )


def check_run(config: "Config", device: torch.device) -> None:
    """ValueError for what the run asks for and cannot have here: kernels, a decoder, a library, a
    folder to go on in."""
    if config.run.resume == "auto" and config.run.out is None:
        raise UsageError("resume='auto' needs out=, the folder of the run to go on with")
    _check_pictures(config.data.data, config.run.out)
    check_count(config.data.workers or 0)
    check_processes(config, asked_for())
    if config.data.decode == "gpu" and device.type != "cuda":
        raise UsageError(f"decode='gpu' needs an NVIDIA GPU, and the run is on {device}")
    kernels = config.run.kernels
    obstacle = family_obstacle(kernels, device.type)
    if obstacle is not None:
        raise UsageError(
            f"kernels={kernels!r} cannot be used: it {obstacle}, and the run is on {device}; 'auto' "
            "and 'torch' run everywhere, `eva-fast doctor` shows what is installed"
        )
    if config.run.graph == "on" and device.type != "cuda":
        raise UsageError(
            f"graph='on' needs an NVIDIA GPU, and the run is on {device}: leave graph at 'auto'"
        )
    check_installed(config.run.track)


def _check_pictures(data: Any, out: Path | None) -> None:
    """A run that draws into its own data would train on that; below the data's folder the walk passes
    over the folders of runs."""
    if out is None or not isinstance(data, str | os.PathLike):
        return
    pictures = out / RUN_PICTURES[0]
    if pictures.is_dir() and os.path.realpath(data) == os.path.realpath(pictures):
        raise UsageError(f"the run would draw into its data, {pictures}: give another out=")


def sample_options(setting: Setting, objective: Objective) -> dict[str, Any]:
    """Options of `build_loader` that say what a sample is: the same for training and examples."""
    _check_student(setting, objective)
    config, fields = setting.config, objective.sample(setting)
    check_sample(objective.request(setting), fields)
    return {
        "fields": fields,
        "seed": config.run.seed,
        "max_bad_fraction": config.data.max_bad_share,
    }


def _check_student(setting: Setting, objective: Objective) -> None:
    """ValueError for a student that the objective does not train."""
    name, sizes, data = setting.config.model.model, setting.sizes, setting.config.data
    if data.channels != 3 and not objective.any_channels:
        raise UsageError(
            f"the objective {objective.name!r} is of images with three channels, not {data.channels}: "
            "'eva', 'fd', 'mae' and 'pixels' take others"
        )
    for option in VARIANT_OPTIONS:
        said = getattr(setting.config.model, option)
        if said == getattr(ModelConfig(), option):
            continue
        own = isinstance(sizes, ModelSizes) and not is_beit(name)
        if option not in objective.variants or not own:
            raise UsageError(
                f"{option}={said!r} is of EVA's own students (eva_SIZE_patchP_R) under the objectives "
                "'eva' and 'fd', and normalize also under 'mae': leave it out"
            )
        if option == "normalize" and data.channels != 3:
            raise UsageError(
                f"normalize is of images with three channels: mean and std are of {data.channels}"
            )
    if data.channels == 3 and setting.config.teacher.teacher_channels is not None:
        raise UsageError(
            "teacher_channels is of images with other than three channels, and these have three"
        )
    if data.is_builtin and data.channels not in (1, 3):
        raise UsageError(
            f"the built-in drawings have three channels, not {data.channels}: give data= of your own"
        )
    if isinstance(sizes, SwinSizes) and not objective.swin:
        raise UsageError(f"the objective {objective.name!r} trains a ViT, and {name} is a Swin")
    if not isinstance(sizes, BackboneSizes):
        return
    _check_batch_norms(setting.config, sizes)
    if objective.backbones == "all":
        return
    if objective.backbones == "none":
        raise UsageError(
            f"the objective {objective.name!r} trains this package's own ViTs (eva_SIZE_patchP_R), not "
            f"{name}: 'eva' trains ViTs of timm, 'fd' any network"
        )
    if not sizes.can_mask:
        raise UsageError(
            f"the objective {objective.name!r} masks patches, and {name} has none from its first block "
            "to its last: take a ViT, or objective='fd'"
        )


def _check_batch_norms(config: "Config", sizes: BackboneSizes) -> None:
    """ValueError where a pass of one image would leave a batch norm of the student a single value."""
    optim, processes = config.optim, asked_for().size
    if optim.batch_size > optim.accumulate * processes or trains_on_one_image(sizes):
        return
    raise UsageError(
        f"{sizes.name} has batch norms that see one value a channel of one image, and need two: "
        f"batch_size {optim.batch_size} gives one image a pass (accumulate {optim.accumulate}, "
        f"{processes} processes). Give batch_size of at least {2 * optim.accumulate * processes}, or a "
        "smaller accumulate"
    )


def loader_workers(config: "Config", device: torch.device) -> int:
    """Decoding processes: on a GPU all cores but one, at most 16; a student on the CPU takes tens of
    times longer than decoding its images, so an eighth of the cores is plenty. None where this
    process may not start any."""
    if config.data.workers is not None:
        return config.data.workers
    if not can_start():
        return 0
    cores = max(1, cpu_count() // asked_for().local_size)
    if device.type == "cuda":
        return min(max(1, cores - 1), 16)
    return max(1, cores // 8) if cores > 1 else 0


def loader_options(setting: Setting, out: Path) -> dict[str, Any]:
    """Options of `build_loader` that say how a run reads its samples."""
    config = setting.config
    to = world()
    return {
        "batch_size": config.optim.batch_size // to.size,
        "rank": to.rank,
        "world": to.size,
        "workers": loader_workers(config, setting.device),
        "bad_images": out / "bad_images.jsonl",
        "device": setting.device,
        "decode": config.data.decode,
    }
