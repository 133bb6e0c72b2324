"""Loss curves in fp8 and in bf16, on the CPU: how far apart are they?

    python -m bench.fp8_curve [--steps 200] [--batch 16] [--out runs/fp8]

The same run of a ViT-Ti (96 pixels, 12 blocks) on the built-in drawings, seed, samples and masks the
same: in fp32, in bf16, and in fp8 as it is emulated on a CPU (`eva_fast.ops.fp8_gemm`). Printed for
each: the mean over the curve of |loss - bf16's loss|, the difference of the means of the last tenth of
the steps, and those means. That of fp32 says how far 16 bits alone lead away. Runs that are there
already are read, not made again.
"""

import argparse
import json
from pathlib import Path

from eva_fast import pretrain


def losses(out: Path, precision: str, steps: int, batch: int) -> list[float]:
    """The loss of every step."""
    if not (out / "model.safetensors").exists():
        pretrain(
            model="eva_ti_patch16_96", depth=12, out=out, steps=steps, batch_size=batch,
            precision=precision, device="cpu", log_every=1, workers=0, progress=False,
        )  # fmt: skip
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def compare(curve: list[float], base: list[float]) -> dict[str, float]:
    """How far `curve` is from `base`, of as many steps."""
    last = max(1, len(base) // 10)
    ends = [sum(c[-last:]) / last for c in (curve, base)]
    return {
        "mean |difference|": sum(abs(a - b) for a, b in zip(curve, base, strict=True)) / len(base),
        "difference at the end": ends[0] - ends[1],
        "end": ends[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("runs/fp8"))
    options = parser.parse_args()

    curves = {
        name: losses(options.out / name, name, options.steps, options.batch)
        for name in ("bf16", "fp32", "fp8")
    }
    for name, values in curves.items():
        found = compare(values, curves["bf16"])
        print(name, *(f"{what} {value:+.5f}" for what, value in found.items()), sep="  ")


if __name__ == "__main__":
    main()
