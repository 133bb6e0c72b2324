"""Packs the first stages of torchvision's MobileNetV2 beside this file: `python pack.py WEIGHTS`.

WEIGHTS is torchvision's mobilenet_v2-b0353104.pth (MobileNet_V2_Weights.IMAGENET1K_V1, BSD-3), of
https://download.pytorch.org/models/mobilenet_v2-b0353104.pth. Batch norms are folded into the
convolutions before them, and all is rounded to float16. The result is the same bytes each time.
"""

import hashlib
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

STAGES = 14  # features[:14]: 96 channels at a 16th of the image's side
SOURCE = "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"
EPS = 1e-5


def folded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convolutions in order, "000.weight", "000.bias", ..., with their batch norms in them."""
    convolutions = [name for name, value in state.items() if value.ndim == 4]
    norms = [name.removesuffix("running_mean") for name in state if name.endswith("running_mean")]
    out = {}
    for number, (conv, norm) in enumerate(zip(convolutions, norms, strict=True)):
        if int(conv.split(".")[1]) >= STAGES:
            break
        gamma, beta, mean, var = (
            state[norm + part].double()
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma / (var + EPS).sqrt()
        out[f"{number:03d}.weight"] = (state[conv].double() * scale[:, None, None, None]).half()
        out[f"{number:03d}.bias"] = (beta - mean * scale).half()
    return out


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    weights, target = Path(sys.argv[1]), Path(__file__).with_name("mobilenet_v2.safetensors")
    found = hashlib.sha256(weights.read_bytes()).hexdigest()
    if found != SOURCE:
        sys.exit(f"{weights} has sha256 {found}, expected {SOURCE}")
    save_file(folded(torch.load(weights, map_location="cpu", weights_only=True)), target)
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    sys.stdout.write(f"{target}: {target.stat().st_size:,} bytes, sha256 {digest}\n")
