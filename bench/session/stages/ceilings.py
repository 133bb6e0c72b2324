"""What the device can do at most: bytes copied a second, and products of the sizes of ViT-g's step
in each of the three directions."""

import torch

from bench.clock import device_seconds
from bench.session.child import Bench

ROUNDS = 5


def median(bench: Bench, call, repeats: int = 5) -> float:
    """Device seconds of one of `repeats` calls back to back, median of rounds."""

    def several() -> None:
        for _ in range(repeats):
            call()

    several()
    found = sorted(device_seconds("", several, bench.device) for _ in range(ROUNDS))
    return found[ROUNDS // 2] / repeats


def run(bench: Bench) -> None:
    with bench.attempt("copy"):
        size = 1 << (20 if bench.tiny else 31)
        source, target = (torch.zeros(size, dtype=torch.uint8, device=bench.device) for _ in "ab")
        seconds = median(bench, lambda: target.copy_(source))
        bench.notes.add("ceiling", what="copy", bytes_per_second=2 * size / seconds)
    shape = bench.shape("g", 32)
    rows, dim, hidden = shape.rows, shape.sizes.embed_dim, shape.sizes.mlp_hidden
    patches = 3 * shape.sizes.patch_size**2
    products = {
        "qkv": (rows, 3 * dim, dim),
        "proj": (rows, dim, dim),
        "fc1": (rows, hidden, dim),
        "fc2": (rows, dim, hidden),
        "patches": (shape.batch * shape.sizes.num_patches, dim, patches),
        "patches padded to 16 bytes": (
            shape.batch * shape.sizes.num_patches, dim, -(-patches // 8) * 8,
        ),
    }  # fmt: skip
    if not bench.tiny:
        products = {"square": (8192, 8192, 8192), **products}
    for name, (m, n, k) in products.items():
        with bench.attempt(f"product {name}"):
            x, weight, dy = (
                torch.randn(*sizes, dtype=shape.dtype, device=bench.device)
                for sizes in ((m, k), (n, k), (m, n))
            )
            directions = {
                "forward": lambda x=x, w=weight: x @ w.t(),
                "dx": lambda dy=dy, w=weight: dy @ w,
                "dw": lambda x=x, dy=dy: dy.t() @ x,
            }
            flops = {d: 2 * m * n * k / median(bench, call) for d, call in directions.items()}
            bench.notes.add("ceiling", what=f"product {name}", sizes=[m, n, k], flops=flops)
