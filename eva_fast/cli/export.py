"""`eva-fast export`."""

from pathlib import Path

from eva_fast.cli.words import Name


def export(run: Name, out: Path) -> None:
    """Write a run's weights as safetensors in official naming, which timm's eva_* models load.

    Args:
        run: a run's folder, one of its checkpoints, or a weights file.
        out: the file to write.
    """
    from eva_fast.recipes.export import export_weights

    print(export_weights(run, out))
