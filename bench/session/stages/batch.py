"""The largest batch of ViT-g that fits, and what each doubling gives: eva_fast, then tuned."""

from bench.harness import OURS
from bench.session.child import Bench
from bench.session.steps import race

BATCHES = (64, 96, 128, 192, 256, 384, 512)


def run(bench: Bench) -> None:
    for name in (OURS, "tuned half"):
        for batch in BATCHES[:1] if bench.tiny else BATCHES:
            if bench.left() < 0.2 * bench.seconds:
                bench.skip(f"batch {batch} of {name}")
                break
            found = race(bench, bench.shape("g", batch), (name,), bench.left(), rounds=3)
            bench.free()
            if name not in found:  # it does not fit, nor does any larger one
                break
