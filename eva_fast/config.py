"""Everything a run can be told, one frozen dataclass per concern.

The field docstrings are the help of `eva-fast pretrain --help`; `Config.from_options` takes the
same names flat, as `eva_fast.pretrain(...)` and a YAML file do. Values that cannot work are
refused here, before anything is loaded. Defaults are EVA-01's (docs/eva01.md) unless said.
"""

import dataclasses
import difflib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from tyro.constructors import PrimitiveConstructorSpec

from eva_fast.errors import MissingFileError, UsageError

# On the command line text; from Python also a dataset, a list of folders or a teacher module.
TextOrObject = Annotated[
    Any,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="STR",
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value)],
    ),
]
EVA_EPOCHS = 150
BUILTIN_EPOCHS = 4


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise UsageError(message)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Student."""

    model: str = "eva_ti_patch16_96"
    """Student by name: eva_SIZE_patchP_R with SIZE one of ti, s, b, l, h, g (or tiny ... giant)."""
    img_size: int | None = None
    """Side of the square crop in pixels, if other than the name says."""
    patch_size: int | None = None
    """Side of a patch in pixels, if other than the name says."""
    embed_dim: int | None = None
    """Width, if other than the name says."""
    depth: int | None = None
    """Number of blocks, if other than the name says."""
    num_heads: int | None = None
    """Attention heads, if other than the name says."""
    mlp_hidden: int | None = None
    """Width inside the MLP, if other than the name says."""
    drop_path: float = 0.1
    """Stochastic depth of the last block; grows linearly from 0."""
    init_from: Path | None = None
    """Start from these student weights (safetensors, official naming) instead of random ones."""

    def __post_init__(self):
        _require(0 <= self.drop_path < 1, f"drop_path must be in [0, 1), got {self.drop_path}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherConfig:
    """Teacher."""

    teacher: TextOrObject = "hog"
    """hog (no weights), a CLIP file or folder, openai/NAME, open_clip/NAME:TAG, hf/ORG/NAME,
    timm/NAME[:FILE], torchvision/NAME[:FILE]."""
    whiten: bool = False
    """Scale the teacher's features to mean 0 and standard deviation 1 a channel, measured over
    the first images of the run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Data."""

    data: TextOrObject = "builtin"
    """builtin (2,154 drawings), a folder, several with weights (a:0.7,b:0.3), a text file of
    paths, tar shards (shard-{000..123}.tar); from Python also any map-style dataset."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Share of an image's area that a crop covers, from and to."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Aspect of a crop, from and to."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    workers: int | None = None
    """Processes that decode images; by default as many as fit the machine."""
    decode: Literal["cpu", "gpu"] = "cpu"
    """Where JPEGs are decoded: in the workers, or on the NVIDIA GPU through nvJPEG."""
    max_bad_share: float = 0.05
    """Stop when more than this share of the images cannot be read."""

    def __post_init__(self):
        low, high = self.crop_scale
        _require(0 < low <= high <= 1, f"crop_scale must be 0 < from <= to <= 1, got {low} {high}")
        low, high = self.crop_ratio
        _require(0 < low <= high, f"crop_ratio must be 0 < from <= to, got {low} {high}")
        _require(0 <= self.flip <= 1, f"flip is a probability, got {self.flip}")
        _require(
            self.workers is None or self.workers >= 0,
            f"workers must be 0 (in this process) or more, got {self.workers}",
        )
        _require(self.decode in ("cpu", "gpu"), f"decode is cpu or gpu, got {self.decode!r}")
        _require(
            0 <= self.max_bad_share <= 1,
            f"max_bad_share must be in [0, 1], got {self.max_bad_share}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """Objective."""

    objective: TextOrObject = "eva"
    """What the student is trained towards: eva (the teacher's features of masked patches); from
    Python also an Objective of one's own."""
    mask_count: int | None = None
    """eva: masked patches an image; by default EVA-01's share, 105 of 256."""
    mask_min_block: int | None = None
    """eva: smallest block of masked patches; by default a sixteenth of the patches (16 of 256)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Optimiser and schedule."""

    batch_size: int = 64
    """Images a step over all devices (EVA-01: 4096)."""
    accumulate: int = 1
    """Split a step into this many forward and backward passes to save memory."""
    steps: int | None = None
    """Length of the run in steps; wins over epochs."""
    epochs: float | None = None
    """Length of the run in passes over the data; by default 150, 4 on the built-in drawings."""
    lr: float = 1e-3
    """Peak learning rate, as it is used: not scaled by the batch size."""
    min_lr: float = 1e-5
    """Learning rate at the end of the cosine."""
    warmup_lr: float = 0.0
    """Learning rate of the first step."""
    warmup_epochs: float = 2.0
    """Length of the linear warm-up, at most a tenth of the run."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's moment decay rates."""
    eps: float = 1e-6
    """AdamW's epsilon."""
    weight_decay: float = 0.05
    """Decay of matrices and the mask token; nothing else decays."""
    clip_grad: float = 3.0
    """Largest global gradient norm; 0 turns clipping off."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, kept beside them; 0 for none."""

    def __post_init__(self):
        for name in ("batch_size", "accumulate"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1")
        _require(
            self.batch_size % self.accumulate == 0,
            f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}",
        )
        _require(self.steps is None or self.steps >= 1, f"steps must be at least 1: {self.steps}")
        _require(self.epochs is None or self.epochs > 0, f"epochs must be above 0: {self.epochs}")
        for name in ("lr", "min_lr", "warmup_lr", "warmup_epochs", "weight_decay", "clip_grad"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value >= 0, f"{name} must be 0 or more, got {value}")
        _require(self.eps > 0, f"eps must be above 0, got {self.eps}")
        _require(all(0 <= b < 1 for b in self.betas), f"betas must be in [0, 1), got {self.betas}")
        _require(0 <= self.ema < 1, f"ema must be in [0, 1), got {self.ema}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Run."""

    out: Path | None = None
    """Folder of the run; by default runs/MODEL-TIME."""
    seed: int = 0
    """Fixes initial values, sample order, crops, masks and dropped paths."""
    resume: Literal["never", "auto"] = "never"
    """auto: go on from the newest whole checkpoint in --out, or start if there is none."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; by default by time alone."""
    checkpoint_minutes: float = 15.0
    """Minutes between checkpoints; 0 turns it off."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay."""
    log_every: int = 10
    """Steps between lines in metrics.jsonl; nothing is read from the device in between."""
    picture_every: int | None = None
    """Steps between pictures; one is always made at the end."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the student's blocks; auto is fp32 on a CPU and bf16 on a GPU."""
    kernels: Literal["auto", "torch", "native", "triton"] = "auto"
    """Fused kernels: auto measures once and takes the faster."""
    track: bool = False
    """Write TensorBoard files too (pip install 'eva-fast[track]')."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self):
        _require(self.log_every >= 1, f"log_every must be at least 1, got {self.log_every}")
        _require(
            self.keep_checkpoints >= 1,
            f"keep_checkpoints must be at least 1, got {self.keep_checkpoints}",
        )
        for name in ("checkpoint_every", "picture_every"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"{name} must be at least 1, got {value}")
        _require(
            self.checkpoint_minutes >= 0,
            f"checkpoint_minutes must be 0 or more, got {self.checkpoint_minutes}",
        )
        _require(
            self.device in ("auto", "cpu") or self.device.split(":")[0] == "cuda",
            f"device must be auto, cpu or cuda, got {self.device!r}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """A whole run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> "Config":
        """A configuration from flat names. ValueError for an unknown name (with the nearest one)
        or a value of the wrong kind."""
        groups: dict[str, dict[str, Any]] = {}
        for name, value in options.items():
            if name not in _HOME:
                near = difflib.get_close_matches(name, _HOME, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(_HOME)}"
                raise UsageError(f"unknown option {name!r}; {hint}")
            group, option = _HOME[name]
            groups.setdefault(group, {})[name] = _fit(name, option.type, value)
        parts: Any = dataclasses.fields(cls)
        return cls(**{part.name: part.type(**groups.get(part.name, {})) for part in parts})

    @classmethod
    def from_yaml(cls, path: Path | str, **over: Any) -> "Config":
        """The options of a YAML file (as `config.yaml` of a run holds them), `over` winning."""
        try:
            options = yaml.safe_load(Path(path).read_text()) or {}
        except OSError as error:
            raise MissingFileError(f"cannot read the configuration {path}: {error}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is not YAML: {error}") from None
        if not isinstance(options, dict):
            raise UsageError(f"{path} must hold lines of `option: value`")
        return cls.from_options({**options, **over})

    def options(self) -> dict[str, Any]:
        """Flat names and values, fit for YAML; objects and classes given from Python as
        their description."""
        flat: dict[str, Any] = {}
        for group in dataclasses.fields(self):
            part = getattr(self, group.name)
            flat |= {f.name: _plain(getattr(part, f.name)) for f in dataclasses.fields(part)}
        return flat


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    kind = value if isinstance(value, type) else type(value)
    return f"{kind.__module__}.{kind.__qualname__} object"


def _fit(name: str, kind: Any, value: Any) -> Any:
    """`value` as the field's type wants it, or a ValueError; numbers in YAML may come as text."""
    if kind is TextOrObject or (value is None and "None" in str(kind)):
        return value
    if kind in (Path | None, Path):
        if isinstance(value, str | Path):
            return Path(value)
    elif kind in (int, int | None):
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif kind in (float, float | None):
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            try:
                return float(value)  # YAML reads 1e-3 as text
            except ValueError:
                pass
    elif kind is bool:
        if isinstance(value, bool):
            return value
    elif kind == tuple[float, float]:
        if isinstance(value, list | tuple) and len(value) == 2:
            return tuple(_fit(name, float, v) for v in value)
    elif kind is str:
        if isinstance(value, str):
            return value
    elif isinstance(value, str):  # a Literal
        choices = kind.__args__
        if value in choices:
            return value
        raise UsageError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    wanted = getattr(kind, "__name__", None) or str(kind)
    raise UsageError(f"{name} must be of type {wanted}, got {value!r}")


# Where each flat name lives: {"lr": ("optim", <field lr>), ...}
_HOME = {
    option.name: (group.name, option)
    for group in dataclasses.fields(Config)
    for option in dataclasses.fields(group.type)  # type: ignore[arg-type]
}
