"""What a run says at its end: where things are, and what to do next, as commands to paste."""

import os
import shlex
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eva_fast.config import Config
from eva_fast.model.config import ModelConfig
from eva_fast.teachers.config import BUILTIN, TeacherConfig

if TYPE_CHECKING:
    from eva_fast.recipes.pretrain import PretrainResult


def ending(config: Config, result: "PretrainResult") -> list[str]:
    """Lines for a person: losses, paths, and the next commands."""
    from eva_fast.objectives import open_objective

    lines = outcome(result, open_objective(config.objective.objective).perfect)
    if result.stopped_by and all(map(_typed, _objects(config))):
        lines += ["go on with:", f"  {_go_on(config, result.out)}"]
    elif result.stopped_by:
        lines.append('go on with the same call and resume="auto"')
    else:
        lines.append("next:")
        for what, command in next_commands(config, result).items():
            lines += [f"  {what}", f"    {command}"]
        page = "its curves, pictures, kernels and options on one page, to look at or to send:"
        lines += [f"  {page}", f"    {_command('report', result.out)}"]
    return lines


def outcome(result: "PretrainResult", perfect: float | None = None) -> list[str]:
    """How a run went and where things are, a line each. perfect: the loss of a perfect prediction."""
    lines, first, last = [], result.first_loss, result.loss
    if result.stopped_by:
        lines.append(f"stopped by {result.stopped_by} after {result.step} of {result.total} steps")
    if first is not None and last is not None:
        best = "" if perfect is None else f" ({perfect:g} is perfect)"
        lines.append(f"loss {first:.4f} -> {last:.4f}{best}")
    else:
        lines.append("no metrics: the run was stopped before its first line of them (log_every)")
    failed = sum("error" in probe for probe in result.probes)
    if failed:
        lines.append(
            f"probes      {failed} of {len(result.probes)} failed: {result.out / 'probes.jsonl'}"
        )
    return [
        *lines,
        f"picture     {result.picture}",
        f"weights     {result.weights}",
        f"metrics     {result.out / 'metrics.jsonl'}",
        f"checkpoint  {result.checkpoint}",
    ]


def next_commands(config: Config, result: "PretrainResult") -> dict[str, str]:
    """{what it is for: a command for the shell}, as fits this run."""
    from eva_fast.model import Backbone, BeitViT, EvaViT, MaeEncoder, SwinV2
    from eva_fast.model.token_vit import TokenViT
    from eva_fast.model.vqkd import VqKd
    from eva_fast.objectives import Objective, open_objective

    out, teacher, named = result.out, config.teacher.teacher, config.objective.objective
    same = [] if not isinstance(named, str) or named == "eva" else ["--objective", named]
    same += _bands(config)
    foreign = isinstance(result.model, Backbone)
    student = _student(config) if same or foreign or config.model != ModelConfig() else []
    taught = type(open_objective(named)).request is not Objective.request
    plain = isinstance(result.model, EvaViT | MaeEncoder)
    found = {}
    codes = isinstance(result.model, VqKd | TokenViT)
    if plain or codes or foreign or isinstance(result.model, SwinV2 | BeitViT):
        ours = config.data.channels in (1, 3)  # as many as the built-in drawings can have
        where = "" if ours else ", on a folder with a folder a class in place of FOLDER"
        what = f"how good its features are, beside untrained ones, pixels and the teacher{where}:"
        found[what] = _command("eval", out, *(() if ours else ("--data", "FOLDER")))
    if isinstance(result.model, VqKd):
        found["predict its codes of masked patches:"] = _command(
            "pretrain", "--objective", "tokens", "--teacher", out, "--model", config.model.model,
            *_sides(config), "--out", _beside(out, "tokens"),
        )  # fmt: skip
    if config.data.is_builtin:
        found["train on your own images, any folder of them in place of FOLDER:"] = _command(
            "pretrain", *same, *student, *_teacher(config), "--data", "FOLDER",
            "--out", _beside(out, "images"),
        )  # fmt: skip
    if taught and plain and teacher in (BUILTIN, "hog"):
        given = config.data.data
        data = os.fspath(given) if _typed(given) and given != BUILTIN else "FOLDER"
        found["with your own teacher, a CLIP file for example:"] = _command(
            "pretrain", *same, "--data", data, "--teacher", "ViT-L-14.pt",
            "--model", "eva_s_patch14_224", "--out", _beside(out, "teacher"),
        )  # fmt: skip
    return found


def _student(config: Config) -> list[str]:
    """The student's name and the sizes that were given with it."""
    words = ["--model", config.model.model]
    for size in fields(config.model):
        value = getattr(config.model, size.name)
        if size.type == int | None and value is not None:
            words += [f"--{size.name.replace('_', '-')}", str(value)]
    return words


def _teacher(config: Config) -> list[str]:
    """The teacher, where it is another than a run has by default and a shell can name it."""
    given = config.teacher.teacher
    named = _typed(given) and given != TeacherConfig().teacher
    return ["--teacher", os.fspath(given)] if named else []


def _typed(value: Any) -> bool:
    """Whether a shell can say it: a list, a dataset, a module has no place there."""
    return isinstance(value, str | os.PathLike)


def _sides(config: Config) -> list[str]:
    """The sides of image and patch where the model's name does not say them."""
    said = {"--img-size": config.model.img_size, "--patch-size": config.model.patch_size}
    return [word for flag, side in said.items() if side for word in (flag, str(side))]


def _bands(config: Config) -> list[str]:
    """What says which channels images have, where these are not three."""
    data = config.data
    if data.channels == 3:
        return []
    said = {"--mean": data.mean, "--std": data.std}
    said["--teacher-channels"] = config.teacher.teacher_channels
    values = [[flag, *map(str, numbers)] for flag, numbers in said.items() if numbers]
    return ["--channels", str(data.channels), *(word for words in values for word in words)]


def _go_on(config: Config, out: Path) -> str:
    data = config.data.data
    piped = _typed(data) and "pipe:" in os.fspath(data)  # which is not taken from a file
    return _command(
        "pretrain", "--config", out / "config.yaml", "--out", out, "--resume", "auto",
        *(("--data", data) if piped else ()),
    )  # fmt: skip


def _objects(config: Config) -> list[Any]:
    """What config.yaml can only describe where Python gave it; a list of paths it holds as it is."""
    data = config.data.data
    parts = data if isinstance(data, list | tuple) else [data]
    flat = [part[0] if isinstance(part, list | tuple) and part else part for part in parts]
    return [*flat, config.teacher.teacher, config.objective.objective]


def _beside(out: Path, what: str) -> Path:
    if out.name in ("", ".."):
        out = out.resolve()
    return Path(f"{out}-{what}")


def _command(*words: object) -> str:
    return shlex.join(["eva-fast", *map(str, words)])
