"""The options of a run as keyword arguments: what editors complete and type checkers verify.

The dataclasses of `eva_fast.config` are what counts. The names and types here are theirs (a test holds
them together), wider only where a value from Python may be: text for a path, a list for a pair.
`documented` puts their defaults and help into `help()` and `inspect.signature`.
"""

import ast
import dataclasses
import inspect
import os
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

from typing_extensions import TypedDict, Unpack

Filter = Literal["bicubic", "bilinear", "lanczos", "hamming", "random"]
AnyPath = str | os.PathLike[str]
Pair = tuple[float, float] | list[float]
Names = str | Sequence[str]
F = TypeVar("F", bound=Callable[..., Any])


class PretrainOptions(TypedDict, total=False):
    """Options of `eva_fast.pretrain` beside data, model, teacher and out."""

    img_size: int | None
    patch_size: int | None
    embed_dim: int | None
    depth: int | None
    num_heads: int | None
    mlp_hidden: int | None
    drop_path: float
    normalize: Literal["clip", "imagenet"] | None
    patch_embed_grad: float
    layer_scale: float | None
    relative_bias: Literal["none", "shared", "decoupled"]
    init_from: AnyPath | None
    teacher_moved: bool
    whiten: bool | None
    teacher_channels: tuple[int, ...] | None
    data_moved: bool
    channels: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    crop_scale: Pair
    crop_ratio: Pair
    flip: float
    color_jitter: float | None
    interpolation: Filter | None
    teacher_interpolation: Filter | None
    workers: int | None
    decode: Literal["cpu", "gpu"]
    max_megapixels: float
    max_bad_share: float
    recipe: str | None
    objective: Any
    mask_count: int | None
    mask_min_block: int | None
    mask_max_block: int | None
    decoder_dim: int
    decoder_depth: int | None
    decoder_heads: int
    norm_pix: bool
    codebook_size: int
    code_dim: int
    branch_depth: int
    batch_size: int
    accumulate: int
    steps: int | None
    epochs: float | None
    lr: float
    min_lr: float
    warmup_lr: float
    warmup_epochs: float
    warmup_steps: int | None
    betas: Pair
    eps: float
    weight_decay: float
    clip_grad: float
    spike: float
    ema: float
    seed: int
    resume: Literal["never", "auto"]
    checkpoint_every: int | None
    checkpoint_minutes: float
    keep_checkpoints: int
    keep_checkpoint_every: int | None
    log_every: int
    picture_every: int | None
    device: str
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp8"]
    kernels: Literal["auto", "torch", "native", "triton"]
    graph: Literal["auto", "on", "off"]
    grad_checkpointing: bool
    grad_checkpointing_share: float
    sharding: Literal["auto", "replicate", "zero2", "full", "hybrid"]
    teacher_sharding: Literal["replicate", "shard"]
    process_minutes: float
    rewinds: int
    track: Names
    progress: bool
    probe_data: AnyPath | None
    probe_every: int | None
    probe_with: Names


class RunOptions(PretrainOptions, total=False):
    """Every option of a run."""

    data: Any
    model: str
    teacher: Any
    out: AnyPath | None


def option_help(group: type) -> dict[str, str]:
    """{field: its docstring} of a dataclass of options; empty where there is no source to read."""
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(group))).body
    except (OSError, TypeError, SyntaxError):
        return {}
    assert isinstance(tree, ast.ClassDef)
    found: dict[str, str] = {}
    for field, text in zip(tree.body, tree.body[1:]):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def documented(groups: Any) -> Callable[[F], F]:
    """Gives a function that takes **options: Unpack[PretrainOptions] (or RunOptions) a signature with
    each of them and its default, and their help at the end of its docstring.

    groups: a dataclass whose fields are dataclasses of options."""

    def mark(function: F) -> F:
        own = [
            p for p in inspect.signature(function).parameters.values() if p.kind != p.VAR_KEYWORD
        ]
        named = {p.name for p in own}
        lines, options = [inspect.cleandoc(function.__doc__ or ""), "", "Options:"], []
        for group in dataclasses.fields(groups):
            kind: Any = group.type
            help_of = option_help(kind)
            lines.append(f"    {inspect.cleandoc(kind.__doc__)}")
            for field in dataclasses.fields(kind):
                if field.name in named:
                    continue
                text = f"{field.name} = {field.default!r}: {help_of.get(field.name, '')}"
                lines += textwrap.wrap(text, 92, initial_indent=" " * 8, subsequent_indent=" " * 12)
                options.append(
                    inspect.Parameter(
                        field.name,
                        inspect.Parameter.KEYWORD_ONLY,
                        default=field.default,
                        annotation=RunOptions.__annotations__[field.name],
                    )
                )
        signature = inspect.signature(function).replace(parameters=[*own, *options])
        function.__signature__ = signature  # type: ignore[attr-defined]
        function.__doc__ = "\n".join(lines)
        return function

    return mark


__all__ = ["PretrainOptions", "RunOptions", "Unpack", "documented", "option_help"]
