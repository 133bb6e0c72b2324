"""timm's networks as students."""

import inspect
import math
import sys
from typing import Any

from torch import Tensor, nn

from eva_fast.errors import UsageError
from eva_fast.layers.inputs import IMAGENET_MEAN, IMAGENET_STD
from eva_fast.libraries import library, unknown
from eva_fast.model.networks.base import REFUSALS, Library, Statistics, without_values
from eva_fast.model.networks.drop_path import DrawnDropPath, replace_drop_paths

ARGUMENTS = {"mlp_hidden": "mlp_ratio", "channels": "in_chans"}
"""Of the builder, by the option's name where that is another."""
_PLAIN: dict[str, nn.Module] = {}
OTHERWISE = "or take a model of this package, eva_SIZE_patchP_R"


def mlp_ratio(hidden: int, width: int) -> float:
    """The ratio of which timm makes `hidden` again: it cuts the product off to a whole number."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


class Timm(Library):
    """Models of `timm.create_model`, without a classifier; a tag behind a dot says whose statistics."""

    title = family = "timm"

    def __init__(self, name: str):
        super().__init__(name)
        architecture, _, tag = self.model.partition(".")
        if not self.timm.is_model(architecture):
            raise unknown("timm model", self.model, self.timm.list_models())
        if tag and self.model not in self.timm.list_pretrained(f"{architecture}.*"):
            raise unknown("timm model", self.model, self.timm.list_pretrained(f"{architecture}.*"))

    @property
    def timm(self) -> Any:
        """The library; no attribute, so that networks can be copied and pickled."""
        return library("timm", "timm", self.name, OTHERWISE)

    def settle(self, asked: dict[str, int]) -> tuple[int, dict[str, Any]]:
        network: Any = self._plain()
        takes = _parameters(type(network))
        arguments: dict[str, Any] = {}
        for option, value in asked.items():
            argument = ARGUMENTS.get(option, option)
            if argument in takes:
                arguments[argument if option == "channels" else option] = value
            elif option != "img_size":  # the others take images of any size
                raise self.takes_not(option)
        if (hidden := arguments.pop("mlp_hidden", None)) is not None:
            arguments["mlp_ratio"] = mlp_ratio(hidden, asked.get("embed_dim", network.embed_dim))
        own = getattr(getattr(network, "patch_embed", None), "img_size", None)
        side = (own or network.pretrained_cfg["input_size"][1:])[0]
        return asked.get("img_size", side), arguments

    def build(self, arguments: dict[str, Any], drop_path: float = 0.0) -> nn.Module:
        if drop_path and "drop_path_rate" in _parameters(type(self._plain())):
            arguments = {**arguments, "drop_path_rate": drop_path}
        try:
            return self.timm.create_model(self.model, num_classes=0, **arguments)
        except REFUSALS as error:
            if isinstance(error, UsageError):
                raise
            raise self.refused(arguments, error) from error

    def drop_paths(self, network: nn.Module, rate: float) -> list[DrawnDropPath]:
        return replace_drop_paths(network, self.timm.layers.DropPath, "drop_prob")

    def features(self, network: nn.Module, images: Tensor, node: str | None) -> Tensor:
        model: Any = network
        found = model.forward_features(images)
        norm = pooled_norm(network)
        return found if norm is None or found.ndim != 3 else norm(found)

    def _plain(self) -> nn.Module:
        """The model as its name says, without values."""
        if self.model not in _PLAIN:
            with without_values():
                _PLAIN[self.model] = self.build({})
        return _PLAIN[self.model]

    def blocks(self, network: nn.Module) -> list[nn.Module]:
        found = getattr(network, "blocks", None)
        return list(found) if isinstance(found, nn.Sequential | nn.ModuleList) else []

    def recompute(self, network: nn.Module, enable: bool) -> None:
        model: Any = network
        try:
            model.set_grad_checkpointing(enable)
        except (AttributeError, AssertionError) as error:
            raise UsageError(f"timm has no activation checkpointing of {self.model!r}") from error

    def converted(self, network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor] | None:
        module = sys.modules[type(network).__module__]
        converter = getattr(module, "checkpoint_filter_fn", None)
        if converter is None:
            return None
        try:
            return converter(dict(state), network)
        except Exception:  # it was written for files that fit
            return None

    def first_weights(self, network: nn.Module) -> list[str]:
        config: Any = network.pretrained_cfg
        first = config.get("first_conv") or ()
        return [f"{name}.weight" for name in ([first] if isinstance(first, str) else first)]

    def statistics(self, network: nn.Module) -> Statistics:
        config: Any = network.pretrained_cfg
        return Statistics(
            tuple(config.get("mean") or IMAGENET_MEAN), tuple(config.get("std") or IMAGENET_STD)
        )


def pooled_norm(network: nn.Module) -> nn.Module | None:
    """The last norm of a network that timm builds with it behind the mean of its tokens: where tokens
    are asked for it is theirs, as it is of one token alone."""
    before, behind = getattr(network, "norm", None), getattr(network, "fc_norm", None)
    if isinstance(before, nn.Identity) and isinstance(behind, nn.Module):
        return behind if next(behind.parameters(), None) is not None else None
    return None


def _parameters(kind: type) -> set[str]:
    """Names of the arguments that a class takes, those that it hands on to its base among them."""
    names: set[str] = set()
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        found = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
        names |= {p.name for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind == p.VAR_KEYWORD for p in found):
            break
    return names
