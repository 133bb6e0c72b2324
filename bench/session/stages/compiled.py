"""The ViT-g step compiled whole, which takes long to compile, beside eva_fast."""

from bench.session.child import Bench
from bench.session.steps import ours, race


def run(bench: Bench) -> None:
    race(bench, bench.shape("g", 32), (*ours(bench), "compile"), bench.left())
