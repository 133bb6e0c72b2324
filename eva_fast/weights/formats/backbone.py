"""A network of timm or torchvision, in one file for its own library."""

from pathlib import Path

from eva_fast.model import Backbone
from eva_fast.model.networks.torchvision import IN_CHANS, first_convolution
from eva_fast.weights.backbone import write_backbone
from eva_fast.weights.formats.exported import TORCH_SUFFIXES, Exported, text
from eva_fast.weights.writer import write_torch


def write_network(model: Backbone, path: Path) -> Exported:
    """One file for the library that the network is of."""
    if path.suffix in TORCH_SUFFIXES:
        write_torch(path, model.official_state_dict())
        imports, load = "import torch", f"torch.load({text(path)}, weights_only=True)"
    else:
        write_backbone(model, path)
        imports, load = "from safetensors.torch import load_file", f"load_file({text(path)})"
    family, _, name = model.sizes.name.partition("/")
    given = dict(model.sizes.arguments)
    exchanged = ""
    if family == "torchvision" and given.pop(IN_CHANS, None):
        conv_name, conv = first_convolution(model.network)
        bias = conv.bias is not None
        exchanged = (
            f"model.set_submodule({text(conv_name)}, torch.nn.Conv2d(\n"
            f"    {conv.in_channels}, {conv.out_channels}, {conv.kernel_size}, {conv.stride}, "
            f"{conv.padding}, bias={bias}\n))\n"
        )
    arguments = "".join(f", {key}={value!r}" for key, value in given.items())
    if family == "timm":
        imports = f"import timm\n{imports}"
        build = f"timm.create_model({text(name)}, num_classes=0{arguments})"
        gives = "# model.forward_features(images): what was trained\n"
    else:
        imports += "\nfrom torchvision.models import get_model"
        if exchanged and not imports.startswith("import torch\n"):
            imports = f"import torch\n{imports}"
        build = f"get_model({text(name)}, weights=None{arguments})"
        gives = "# its classifier is a fresh one\n"
    prepared = f"normalised by mean {model.mean} and std {model.std}"
    if model.sizes.channels != 3:
        prepared = "less the mean and over the std of the run"
    return Exported(
        path,
        f"{imports}\n\nmodel = {build}\n{exchanged}model.load_state_dict({load})\nmodel.eval()\n"
        f"# images {prepared}\n{gives}",
    )
