"""The whole ViT-g step at batch 32, every variant in turns but the one whose compilation takes long."""

from bench import libraries
from bench.session.child import Bench
from bench.session.steps import NARROW, ours, race


def run(bench: Bench) -> None:
    names = (*ours(bench), *NARROW, "tuned", "reference")
    if libraries.missing() is None:
        names += ("libraries",)
    race(bench, bench.shape("g", 32), names, bench.left())
