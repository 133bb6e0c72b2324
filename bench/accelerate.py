"""A library's vision transformer as it is and accelerated: forward alone and a training step, in turn.

    python -m bench.accelerate [--model NAME...] [--batch 4] [--depth 4] [--rounds 9] [--autocast]

NAME: a model of timm, or hf-vit, hf-clip, hf-dinov2 (transformers, sizes of base). Both networks have
the same weights and see the same images; their outputs are compared before anything is timed. Processor
time of all threads, which hardly grows with what else the machine does, and wall time: medians of rounds
in turn. `--depth` cuts the network to so many blocks, since all cost the same. On CPUs; on a GPU with
`--device cuda` the wall time is what counts.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

import eva_fast

MODELS = ("vit_base_patch16_224", "vit_base_patch14_dinov2", "eva_giant_patch14_224", "hf-vit")
KINDS = ("forward", "step")


def network(name: str, depth: int) -> tuple[torch.nn.Module, int]:
    """A network of `depth` blocks and the side of its images."""
    if not name.startswith("hf-"):
        import timm

        side = 224 // (14 if "patch14" in name else 16) * (14 if "patch14" in name else 16)
        return timm.create_model(name, depth=depth, img_size=side, num_classes=10), side
    import transformers

    models: dict[str, Any] = {
        "hf-vit": (transformers.ViTModel, transformers.ViTConfig),
        "hf-clip": (transformers.CLIPVisionModel, transformers.CLIPVisionConfig),
        "hf-dinov2": (transformers.Dinov2Model, transformers.Dinov2Config),
    }
    model, config = models[name]
    return model(config(num_hidden_layers=depth, image_size=224)), 224


def calls(
    model: torch.nn.Module, images: torch.Tensor, autocast: bool
) -> dict[str, Callable[[], torch.Tensor]]:
    """{"forward": without gradients; "step": forward, backward and a step of SGD}."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    kind = images.device.type

    def output() -> torch.Tensor:
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=autocast):
            out = model(images)
        return out if isinstance(out, torch.Tensor) else out.last_hidden_state

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return output()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = output().float().square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return {"forward": forward, "step": step}


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """{"forward" and "step": {"plain" and "accelerated": milliseconds, "gain"}}, and what was fused."""
    torch.manual_seed(0)
    plain, side = network(name, options.depth)
    plain = plain.to(options.device).eval()
    fused = eva_fast.accelerate(copy.deepcopy(plain))
    images = torch.randn(options.batch, 3, side, side, device=options.device)
    both = {
        "plain": calls(plain, images, options.autocast),
        "accelerated": calls(fused, images, options.autocast),
    }
    out, found = (both[which]["forward"]() for which in both)
    difference = float((found - out).abs().max() / out.abs().max())
    if difference > (0.1 if options.autocast else 1e-4):
        raise RuntimeError(f"{name}: the accelerated output is off by {difference:.1e}")
    result: dict[str, Any] = {"fused": str(fused.eva_fast_report), "difference": difference}
    for kind in KINDS:
        times = _in_turn({which: both[which][kind] for which in both}, options.rounds)
        result[kind] = {
            which: {clock: statistics.median(ms) for clock, ms in clocks.items()}
            for which, clocks in times.items()
        }
        result[kind]["gain"] = {
            clock: statistics.median(
                a / b
                for a, b in zip(times["plain"][clock], times["accelerated"][clock], strict=True)
            )
            for clock in ("processor", "wall")
        }
    return result


def _in_turn(
    runs: dict[str, Callable[[], object]], rounds: int
) -> dict[str, dict[str, list[float]]]:
    """{run: {"processor" and "wall": milliseconds of each round}}, after a round that does not count."""
    times: dict[str, dict[str, list[float]]] = {
        which: {"processor": [], "wall": []} for which in runs
    }
    for number in range(rounds + 1):
        for which, run in runs.items():
            own, wall = time.process_time(), time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                times[which]["processor"].append((time.process_time() - own) * 1e3)
                times[which]["wall"].append((time.perf_counter() - wall) * 1e3)
    return times


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.accelerate", description=__doc__)
    parser.add_argument("--model", nargs="+", default=MODELS)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--autocast", action="store_true", help="products in bfloat16")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    results = {}
    for name in options.model:
        results[name] = found = measure(name, options)
        if options.json:
            continue
        print(f"{name}, {options.depth} blocks, batch {options.batch}: {found['fused']}")
        for kind in KINDS:
            plain, fused, gain = (found[kind][k] for k in ("plain", "accelerated", "gain"))
            print(
                f"  {kind:<8} processor {plain['processor']:7.0f} -> {fused['processor']:6.0f} ms, "
                f"{gain['processor']:.2f} times; wall {gain['wall']:.2f} times",
                flush=True,
            )
    if options.json:
        print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
