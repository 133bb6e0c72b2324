"""Teachers with random values, by LightlyTrain's Python: `python -m bench.lightly.teacher NAME FILE`."""

import sys


def main(name: str, file: str) -> None:
    import torch
    from lightly_train._models import package_helpers

    torch.manual_seed(0)
    wrapped = package_helpers.get_wrapped_model(model=name, num_input_channels=3)
    wrapped.make_teacher()
    values = wrapped.get_model().state_dict()
    for key, value in values.items():
        if key.endswith("gamma"):  # LayerScale begins at nearly nothing, which no trained one is
            value.fill_(0.1)
    torch.save(values, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
