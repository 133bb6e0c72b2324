"""`eva-fast eval`."""

from pathlib import Path

from eva_fast.cli.words import Name
from eva_fast.data.decode.limits import MAX_MEGAPIXELS

OWN = "own"


def evaluate(
    run: Name,
    data: str = "builtin",
    probe: str = "knn,linear",
    teacher: str = OWN,
    out: Path | None = None,
    device: str = "auto",
    max_megapixels: float = MAX_MEGAPIXELS,
) -> None:
    """Judge a run's weights by k-NN and a linear probe, beside random init, pixels and the teacher.

    Args:
        run: a run's folder or a weights file in official naming.
        data: builtin, or a folder with one folder a class (or train/ and val/ with such).
        probe: knn, linear or both, with a comma.
        teacher: teacher to compare with; own: the run's, none: none.
        out: JSON file; by default eval.json in the run's folder, NAME.eval.json beside a file.
        device: cpu, cuda or auto.
        max_megapixels: images of more million pixels are left out.
    """
    from eva_fast.evaluation import evaluate as judge
    from eva_fast.evaluation import print_table

    result = judge(
        run, data=data, probes=tuple(probe.split(",")), teacher=None if teacher == OWN else teacher,
        out=out, device=device, max_megapixels=max_megapixels,
    )  # fmt: skip
    print_table(result)
