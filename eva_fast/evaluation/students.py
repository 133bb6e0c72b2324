"""A trained student from a run's folder, a checkpoint or a weight file, ready to give features."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from eva_fast.data.config import DataConfig
from eva_fast.documents import read_yaml
from eva_fast.errors import MissingFileError, UsageError
from eva_fast.keywords import AnyPath
from eva_fast.model import (
    Backbone,
    BackboneSizes,
    BeitViT,
    EvaViT,
    MaeEncoder,
    ModelSizes,
    Sizes,
    SwinSizes,
    SwinV2,
    backbone_sizes_of,
    create_model,
    is_backbone,
    sizes_of,
    swin_sizes_of,
)
from eva_fast.model.token_vit import TokenViT
from eva_fast.model.variant import EVA01, Variant
from eva_fast.model.vqkd import VqKd
from eva_fast.objectives import OBJECTIVES, open_objective
from eva_fast.options import shown, user_path
from eva_fast.train import checkpoint
from eva_fast.weights import (
    code_model,
    holds_backbone,
    holds_codes,
    holds_swin,
    infer_sizes,
    naming,
    read,
    read_backbone,
    read_student,
    read_swin_student,
    swin_sizes_in,
)
from eva_fast.weights.backbone import filled
from eva_fast.weights.beit import BEIT, beit_state, load_beit
from eva_fast.weights.folder import weight_file
from eva_fast.weights.naming import official, timm
from eva_fast.weights.student import MAE, PRETRAINING_ONLY, SIZE_NAMES, infer_variant

WEIGHTS, CONFIG = "model.safetensors", "config.yaml"
RANDOM_INIT_SEED = 0
BACKBONE_PREFIX = "model.encoder.network."
"""Of a network of another library in a checkpoint, whatever is trained around it."""
Student = EvaViT | MaeEncoder | SwinV2 | BeitViT | Backbone | VqKd | TokenViT


def find_weights(run_or_weights: AnyPath) -> Path:
    """The weight file of a run or of another library's folder, or the file itself.
    FileNotFoundError says what was looked for."""
    path = user_path(run_or_weights)
    if not isinstance(path, Path):
        raise UsageError(f"a run's folder or a weight file is named by its path, got {shown(path)}")
    if path.is_dir():
        try:
            return weight_file(path)
        except MissingFileError as error:
            raise MissingFileError(
                f"{path} holds no {WEIGHTS}: it is not a run's folder, or the run has not ended "
                "(`eva-fast export RUN --out FILE` takes the weights of its newest checkpoint). As "
                f"another library's folder: {error}"
            ) from None
    if not path.is_file():
        raise MissingFileError(f"there is no run folder or weight file {path}")
    return path


def run_config(weights: Path) -> dict[str, Any]:
    """Options of the run that wrote `weights`, from the config.yaml beside it; {} without one."""
    path = weights.parent / CONFIG
    if not path.is_file():
        return {}
    options = read_yaml(path)
    return options if isinstance(options, dict) else {}


def prepared_as(options: dict[str, Any]) -> DataConfig:
    """What a run's options say of its images' channels."""
    mean, std = (None if options.get(n) is None else tuple(options[n]) for n in ("mean", "std"))
    return DataConfig(channels=options.get("channels", 3), mean=mean, std=std)


def load_student(weights: Path, device: torch.device) -> Student:
    """The model of a weight file, in evaluation mode. Sizes are the tensors'; the number of heads
    is the file's own metadata's, else that of the run's config.yaml, else the usual head width's."""
    found = read(weights)
    if holds_backbone(found):
        return read_backbone(found).to(device)
    if holds_codes(found):
        return code_model(found, weights).to(device)
    if holds_swin(found):
        return _swin(swin_sizes_in(found), read_swin_student(found), device, weights)
    if (beit := beit_state(found)) is not None:
        return load_beit(beit, weights).to(device).eval()
    state, metadata = read_student(weights)
    known: dict[str, object] = dict(metadata)
    if "num_heads" not in known:
        known.update(_heads(run_config(weights)))
    sizes = infer_sizes(state, known)
    try:
        if metadata.get("network") == MAE:
            return _encoder(sizes, metadata["statistics"], dict(found), device)
        model = random_student(sizes, device, infer_variant(state, metadata))
        own = model.state_dict()
        model.load_official({**{name: own[name] for name in PRETRAINING_ONLY}, **state})
    except ValueError as error:
        raise UsageError(f"{weights}: {error}") from None
    return model


def load_checkpoint(folder: Path, device: torch.device) -> Student:
    """The student in one checkpoint of a run, alone or a part of what was trained, in evaluation
    mode. UsageError for a damaged checkpoint, or one without a student."""
    fault = checkpoint.fault_of(folder)
    if fault is not None:
        raise UsageError(f"checkpoint {folder} is damaged: {fault}")
    names = checkpoint.names_in(folder)
    trained = {name: names[name] for name in names if name.startswith("model.")}
    options = checkpoint.options_in(folder)
    if is_backbone(options.get("model")):
        tensors = _tensors(folder, trained, BACKBONE_PREFIX)
        sizes_said = _sized(backbone_sizes_of, options)
        return filled(sizes_said, tensors, folder).to(device)
    if holds_codes(name.removeprefix("model.") for name in trained):
        heads = int(str(_heads(options)["num_heads"]))
        return code_model(_tensors(folder, trained, "model."), folder, heads).to(device)
    if (prefix := naming.swin.V2.find(trained)) is not None:
        named = _sized(swin_sizes_of, options)
        return _swin(named, _tensors(folder, trained, prefix), device, folder)
    if (prefix := BEIT.find(trained)) is not None:
        beit = BEIT.read(_tensors(folder, trained, prefix), "")
        return load_beit(beit, folder).to(device).eval()
    prefix, encoder = official.EVA.find(trained), timm.VIT.find(trained)
    if prefix is None:
        prefix = encoder
    if prefix is None:
        raise UsageError(f"checkpoint {folder} holds no student")
    tensors = _tensors(folder, trained, prefix)
    known = _heads(options)
    if prefix == encoder:
        sizes = infer_sizes(timm.VIT.read(tensors, ""), known)
        return _encoder(sizes, _statistics(options), tensors, device)
    variant = infer_variant(tensors, options)
    model = random_student(infer_sizes(tensors, known), device, variant)
    model.load_official(tensors)
    return model


def random_student(sizes: ModelSizes, device: torch.device, variant: Variant = EVA01) -> EvaViT:
    """The same architecture with initial values of a fixed seed; torch's random state is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_INIT_SEED)
        model = create_model(**asdict(sizes), variant=variant)
    return model.to(device).eval()


def untrained(student: Student, device: torch.device, sizes: Sizes | None = None) -> Student:
    """`random_student` of a student's own kind, of its own sizes unless said."""
    if isinstance(student, VqKd | TokenViT):
        return _untrained_codes(student).to(device).eval()
    sizes = student.sizes if sizes is None else sizes
    if isinstance(sizes, ModelSizes) and isinstance(student, EvaViT):
        return random_student(sizes, device, student.variant)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_INIT_SEED)
        model: Student
        if isinstance(sizes, SwinSizes):
            model = SwinV2(sizes)
        elif isinstance(sizes, BackboneSizes):
            model = Backbone(sizes)
        elif isinstance(student, BeitViT):
            model = BeitViT(sizes)
        else:
            assert isinstance(student, MaeEncoder)
            model = MaeEncoder(sizes, student.statistics)
    return model.to(device).eval()


def _untrained_codes(student: VqKd | TokenViT) -> VqKd | TokenViT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_INIT_SEED)
        if isinstance(student, VqKd):
            return VqKd(student.sizes, decodes=False)
        return TokenViT(student.sizes, branch_depth=0)


def _encoder(
    sizes: ModelSizes, statistics: Any, tensors: dict[str, torch.Tensor], device: torch.device
) -> MaeEncoder:
    encoder = MaeEncoder(sizes, statistics)
    encoder.load_official(tensors)
    return encoder.to(device).eval()


def _swin(
    sizes: SwinSizes, tensors: dict[str, torch.Tensor], device: torch.device, where: Path
) -> SwinV2:
    with torch.random.fork_rng(devices=[]):
        model = SwinV2(sizes)
    try:
        model.load_official(tensors)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None
    return model.to(device).eval()


def _tensors(folder: Path, trained: dict[str, Any], prefix: str) -> dict[str, torch.Tensor]:
    """What a checkpoint holds under a prefix."""
    tensors = {
        name.removeprefix(prefix): torch.empty(stored.size, dtype=stored.properties.dtype)
        for name, stored in trained.items()
        if name.startswith(prefix)
    }
    checkpoint.load(folder, {prefix + name: tensor for name, tensor in tensors.items()})
    return tensors


def _statistics(options: dict[str, Any]) -> str:
    """What the run of these options normalised its images with."""
    if options.get("normalize"):
        return str(options["normalize"])
    name = options.get("objective")
    return open_objective(name).statistics if name in OBJECTIVES else "clip"


def _heads(options: dict[str, Any]) -> dict[str, object]:
    """What a run's options say of the one size that shapes do not show; {} if nothing."""
    if not options.get("model"):
        return {}
    return {"num_heads": _sized(sizes_of, options).num_heads}


def _sized(sizes: Callable[..., Any], options: dict[str, Any]) -> Any:
    """What `sizes` makes of the student's name and sizes among a run's options."""
    name = options.get("model")
    try:
        if isinstance(name, str):
            return sizes(name, **_chosen(options))
    except (TypeError, ArithmeticError) as error:
        raise UsageError(f"the run's options say sizes that are none: {error}") from None
    raise UsageError(f"the run's options name no student: model is {shown(name)}")


def _chosen(options: dict[str, Any]) -> dict[str, Any]:
    """The sizes among a run's options."""
    names = [name for name in SIZE_NAMES if name != "predict_dim"]
    return {name: options.get(name) for name in (*names, "channels")}
