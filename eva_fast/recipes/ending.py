"""What a run says at its end: where things are, and what to do next, as commands to paste."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from eva_fast.config import Config
from eva_fast.teachers.config import BUILTIN

if TYPE_CHECKING:
    from eva_fast.recipes.pretrain import PretrainResult


def ending(config: Config, result: "PretrainResult") -> list[str]:
    """Lines for a person: losses, paths, and the next commands."""
    from eva_fast.objectives import open_objective

    lines = []
    first, last = result.metrics.get("first_loss"), result.metrics.get("loss")
    if result.stopped_by:
        lines.append(f"stopped by {result.stopped_by}; go on with:")
        lines.append(f"  {_go_on(result.out)}")
    elif first is not None and last is not None:
        perfect = open_objective(config.objective.objective).perfect
        best = "" if perfect is None else f" ({perfect:g} is perfect)"
        lines.append(f"loss {first:.4f} -> {last:.4f}{best}")
    lines += [
        f"picture     {result.picture}",
        f"weights     {result.weights}",
        f"metrics     {result.out / 'metrics.jsonl'}",
        f"checkpoint  {result.checkpoint}",
    ]
    if not result.stopped_by:
        lines.append("next:")
        for what, command in next_commands(config, result).items():
            lines += [f"  {what}", f"    {command}"]
    return lines


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
    student = ["--model", config.model.model] if same or foreign else []
    taught = type(open_objective(named)).request is not Objective.request
    plain = isinstance(result.model, EvaViT | MaeEncoder)
    if isinstance(result.model, TokenViT):
        same += ["--teacher", str(teacher)]
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
            "pretrain", *same, *student, "--data", "FOLDER", "--out", _beside(out, "images")
        )
    if taught and plain and teacher in (BUILTIN, "hog"):
        given = config.data.data
        typed = isinstance(given, str | os.PathLike) and given != BUILTIN
        data = os.fspath(given) if typed else "FOLDER"  # a list or dataset has no place in a shell
        found["with your own teacher, a CLIP file for example:"] = _command(
            "pretrain", *same, "--data", data, "--teacher", "ViT-L-14.pt",
            "--model", "eva_s_patch14_224", "--out", _beside(out, "teacher"),
        )  # fmt: skip
    return found


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


def _go_on(out: Path) -> str:
    return _command(
        "pretrain", "--config", out / "config.yaml", "--out", out, "--resume", "auto"
    )  # fmt: skip


def _beside(out: Path, what: str) -> Path:
    if out.name in ("", ".."):
        out = out.resolve()
    return Path(f"{out}-{what}")


def _command(*words: object) -> str:
    return shlex.join(["eva-fast", *map(str, words)])
