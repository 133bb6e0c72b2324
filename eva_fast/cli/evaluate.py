"""`eva-fast eval`."""

from pathlib import Path

from eva_fast.cli.words import Name
from eva_fast.data.decode.limits import MAX_MEGAPIXELS


def evaluate(
    run: Name,
    data: str = "builtin",
    probe: str = "knn,linear",
    teacher: str = "own",
    out: Path | None = None,
    device: str = "auto",
    batch_size: int = 64,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> None:
    """Judge a run's weights by k-NN and a linear probe, beside random init, pixels and the teacher.

    Args:
        run: a run's folder, or weights of the official code, timm, transformers or open_clip.
        data: builtin, or a folder with one folder a class (or train/ and val/ with such).
        probe: knn, linear or both, with a comma.
        teacher: teacher to compare with; own: the run's, none: none.
        out: JSON file; by default eval.json in the run's folder, NAME.eval.json beside a file.
        device: cpu, cuda or auto.
        batch_size: images at a time.
        max_megapixels: images of more million pixels are left out.
    """
    from rich.console import Console

    from eva_fast.evaluation import evaluator
    from eva_fast.evaluation.table import render

    found = evaluator.evaluate(
        run, data, probe, teacher,
        out=out, device=device, batch_size=batch_size, max_megapixels=max_megapixels,
    )  # fmt: skip
    Console().print(render(found))
