"""`eva-fast ablate`."""

from eva_fast.cli.words import NO_OPTIONS
from eva_fast.config import Config
from eva_fast.errors import UsageError


def ablate(
    config: Config = NO_OPTIONS,
    budget: float = 120.0,
    seeds: int = 3,
    rows: str | None = None,
    flops: float | None = None,
    probe: str = "knn,linear",
    labelled: str | None = None,
) -> None:
    """Train every objective with the same arithmetic, probe the students and draw the tables "tokenise?"
    and "distil?". --out DIR is the folder; the same command goes on with what is left. Other options are
    those of pretrain, the same for all rows.

    Args:
        config: what all runs share.
        budget: minutes that all runs and probes together are to take on this machine.
        seeds: runs of each row.
        rows: names of rows, with commas; by default all.
        flops: arithmetic of a row and seed, in place of minutes.
        probe: knn, linear or both, with a comma.
        labelled: images with classes to probe on, as eval takes them; by default those of --data.
    """
    if config.run.out is None:
        raise UsageError("ablate needs out=, the folder that it works in")
    from eva_fast.recipes.ablate import run_ablation
    from eva_fast.recipes.ablation.rows import said_of

    result = run_ablation(
        config.run.out, said_of(config), budget=budget, seeds=seeds,
        rows=rows or (), flops=flops, probe=probe, labelled=labelled,
    )  # fmt: skip
    print((result.out / "ablation.md").read_text())
