"""The whole ViT-g step at batch 32, every variant in turns but the one whose compilation takes long."""

from bench import libraries
from bench.harness import OURS
from bench.session.child import Bench
from bench.session.steps import race

VARIANTS = (OURS, "tuned half", "compile blocks", "tuned", "reference")


def run(bench: Bench) -> None:
    names = VARIANTS if libraries.missing() else (*VARIANTS, "libraries")
    race(bench, bench.shape("g", 32), names, bench.left())
