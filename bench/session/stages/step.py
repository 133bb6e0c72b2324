"""The whole ViT-g step at batch 32, every variant in turns but the one whose compilation takes long."""

from bench.harness import OURS
from bench.session.child import Bench
from bench.session.steps import race

VARIANTS = (OURS, "tuned half", "compile blocks", "tuned", "reference")


def run(bench: Bench) -> None:
    race(bench, bench.shape("g", 32), VARIANTS, bench.left())
