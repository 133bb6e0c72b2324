"""Each op and one block at ViT-g's shape and batch 32: device, wall and host time of every variant."""

import importlib
import statistics

import torch

from bench import optimizer
from bench.clock import sample
from bench.harness import Case, check_agreement
from bench.kit import Kit
from bench.session.child import Bench
from bench.shapes import Shape
from bench.subjects import subjects

FIRST = ("add_layer_norm", "bias_gelu", "packed_attention", "block")
"""In order of their share of the step."""
ROUNDS = 5


def run(bench: Bench) -> None:
    shape = bench.shape("g", 32)
    names = [*FIRST, *(s for s in subjects() if s not in FIRST)]
    cases = [(name, mode) for name in names for mode in _modes(name)]
    for name, mode in [*cases[:4], ("optimizer", "step"), *cases[4:]]:
        if bench.left() < 0.1 * bench.seconds:
            bench.skip(f"{name} {mode}")
            continue
        _time(bench, name, mode, shape)
        bench.free()


def _modes(name: str) -> list[str]:
    modes = importlib.import_module(f"bench.ops.{name}").MODES
    return [m for m in modes if m != "both"]


def _time(bench: Bench, name: str, mode: str, shape: Shape) -> None:
    what = f"{name} {mode}"
    with bench.attempt(what):
        torch.manual_seed(0)
        kit = Kit(name, not bench.tiny, False)
        module = optimizer if name == "optimizer" else importlib.import_module(f"bench.ops.{name}")
        case: Case = module.subject(shape, mode, kit)
        with bench.attempt(f"agreement of {what}"):
            check_agreement(case)
        variants = {}
        for variant, subject in case.variants.items():
            with bench.attempt(f"{what} {variant}"):
                subject.call()
                found = [sample(subject.call, bench.device, 5) for _ in range(ROUNDS)]
                variants[variant] = {
                    f"{clock}_us": 1e6 * statistics.median(getattr(s, clock) for s in found)
                    for clock in ("device", "wall", "host")
                }
        bench.notes.add(
            "op", op=name, mode=mode, shape=case.shape, variants=variants, missing=case.missing
        )
