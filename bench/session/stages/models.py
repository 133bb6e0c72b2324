"""The smaller students, where the host may be the limit."""

from bench.session.child import Bench
from bench.session.steps import NARROW, ours, race

SHAPES = (("b", 32), ("b", 256), ("l", 32), ("s", 128), ("ti", 128), ("l", 128))


def run(bench: Bench) -> None:
    for size, batch in SHAPES[:1] if bench.tiny else SHAPES:
        if bench.left() < 0.1 * bench.seconds:
            bench.skip(f"ViT-{size} batch {batch}")
            continue
        names = (*ours(bench), *NARROW)
        race(bench, bench.shape(size, batch), names, bench.left() / 2, rounds=7)
        bench.free()
