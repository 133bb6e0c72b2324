"""The ViT-g step compiled whole, which takes long to compile, beside eva_fast."""

from bench.harness import OURS
from bench.session.child import Bench
from bench.session.steps import race


def run(bench: Bench) -> None:
    race(bench, bench.shape("g", 32), (OURS, "compile"), bench.left())
