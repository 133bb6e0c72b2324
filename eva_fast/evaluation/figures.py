"""How the project's figures look, and matplotlib only where one is drawn."""

from typing import Any

from eva_fast.errors import UsageError


def pyplot() -> Any:
    """matplotlib.pyplot drawing to files; ValueError where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise UsageError(
            f"plots need matplotlib ({error}): pip install 'eva-fast[bench]'"
        ) from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "figure.dpi": 150,
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
        }
    )
    return plt
