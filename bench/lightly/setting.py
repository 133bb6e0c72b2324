"""What both sides find on disk: photographs, teachers, and the words that start them."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from bench.lightly.cases import Case
from bench.lightly.race import HERE, Side
from bench.photos import encode, photographs

SIZE = (500, 375)
QUALITY = 92
"""About 100 KB a photograph."""
STEPS = 1_000_000
"""Of a run, which ends before."""
TELEMETRY_OFF = {"LIGHTLY_TRAIN_EVENTS_DISABLED": "1"}
SCRIPTS = Path(__file__).parent / "scripts"


def write_photographs(folder: Path, count: int, seed: int = 0) -> None:
    """JPEG files, random crops of the photographs that scikit-image and scikit-learn bring along."""
    folder.mkdir(parents=True)
    draw, images = np.random.default_rng(seed), photographs()
    for number in range(count):
        image = images[number % len(images)]
        width, height = min(SIZE[0], image.width), min(SIZE[1], image.height)
        left = int(draw.integers(0, image.width - width + 1))
        top = int(draw.integers(0, image.height - height + 1))
        part = image.crop((left, top, left + width, top + height)).resize(SIZE)
        (folder / f"{number:05d}.jpg").write_bytes(encode(part, quality=QUALITY))


def write_teachers(folder: Path, cases: Iterable[Case], their_python: str) -> None:
    """The values of each teacher, the same for both: what LightlyTrain's builder draws from one seed."""
    import torch

    for kind in ("theirs", "ours"):
        (folder / kind).mkdir(parents=True)
    for file, case in {case.teacher_file: case for case in cases}.items():
        drawn = folder / "theirs" / file
        words = [their_python, "-m", "bench.lightly.teacher", case.teacher, str(drawn)]
        subprocess.run(words, check=True, cwd=HERE, env={**os.environ, **their_environment(folder)})
        values = torch.load(drawn, weights_only=True)
        kept = {k: v for k, v in values.items() if not k.startswith(case.dropped or ("\n",))}
        torch.save(kept, folder / "ours" / file)


def their_environment(folder: Path) -> dict[str, str]:
    return {**TELEMETRY_OFF, "LIGHTLY_TRAIN_CACHE_DIR": str(folder / "cache")}


def their_version(their_python: str) -> str:
    statement = "from importlib.metadata import version; print(version('lightly-train'))"
    words = [their_python, "-c", statement]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def sides(
    case: Case,
    folder: Path,
    out: Path,
    their_python: str,
    precision: str,
    workers: int,
    memory: bool,
) -> list[Side]:
    """Both runs after their first step: theirs, then ours. out: an empty folder for what they write."""
    out.mkdir(parents=True)

    def side(name: str, python: str, options: dict[str, Any], environment: dict[str, str]) -> Side:
        options["out"] = str(out / name)
        words = [python, "-m", f"bench.lightly.{name}", "{answers}"]
        words += [json.dumps(options), json.dumps(memory)]
        return Side(name, words, environment, out / f"{name}.log")

    asked = (folder, precision, workers, STEPS)
    begun = [side("theirs", their_python, case.theirs(*asked), their_environment(folder))]
    cache = {"XDG_CACHE_HOME": str(out / "cache")}
    return [*begun, side("ours", sys.executable, case.ours(*asked), cache)]


def script_lines(name: str) -> int:
    """Lines that a user writes: those of the script that are not empty."""
    text = (SCRIPTS / f"{name}.py").read_text()
    return len(re.findall(r"^.*\S.*$", text, re.MULTILINE))
