"""A module's weights under the names that others know them by."""

from collections.abc import Mapping

from torch import Tensor, nn


class Official(nn.Module):
    """A module whose state dict is in official naming, or whose `official_names` says how it differs."""

    def official_names(self) -> dict[str, str]:
        """{name in the state dict: official name} of every tensor."""
        return {name: name for name in self.state_dict()}

    def load_official(self, state_dict: Mapping[str, Tensor]) -> None:
        """Loads a state dict in official naming; ValueError lists what is missing, unknown or of
        another shape."""
        names = self.official_names()
        own = {names[name]: value for name, value in self.state_dict().items()}
        missing, unknown = own.keys() - state_dict.keys(), state_dict.keys() - own.keys()
        wrong = [
            f"{k}: {tuple(state_dict[k].shape)} instead of {tuple(own[k].shape)}"
            for k in own.keys() & state_dict.keys()
            if own[k].shape != state_dict[k].shape
        ]
        faults = [
            f"{what}: {', '.join(sorted(keys)[:8])}{' ...' if len(keys) > 8 else ''}"
            for what, keys in (("missing", missing), ("unknown", unknown), ("shape", wrong))
            if keys
        ]
        if faults:
            raise ValueError("the weights do not fit this model; " + "; ".join(faults))
        self.load_state_dict({name: state_dict[official] for name, official in names.items()})

    def official_state_dict(self) -> dict[str, Tensor]:
        """Float32 copies on the CPU in official naming: what a checkpoint for others holds."""
        names = self.official_names()
        return {
            names[name]: value.detach().float().cpu().clone()
            for name, value in self.state_dict().items()
        }
