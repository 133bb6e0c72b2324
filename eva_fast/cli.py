"""`eva-fast`: pretrain, eval, export, plan, profile, doctor, data check, bench report.

Exit status: 0 done (also when a signal stopped a run after its checkpoint), 1 the run failed,
2 wrong use.
"""

import logging
import sys
from pathlib import Path
from typing import Annotated

import tyro

from eva_fast.config import Config

app = tyro.extras.SubcommandApp()
data_app = tyro.extras.SubcommandApp()
bench_app = tyro.extras.SubcommandApp()
Name = tyro.conf.Positional[str]


def pretrain(config: Annotated[tyro.conf.OmitArgPrefixes[Config], tyro.conf.arg(name="")]) -> None:
    """Pre-train a student on images. With no options: the built-in drawings, HOG features as
    teacher, a small ViT, about two minutes on two cores. --config FILE.yaml gives options from a
    file (`config.yaml` of a run is one); flags win over it."""
    from eva_fast.pretrain import run

    result = run(config)
    first, last = result.metrics.get("first_loss"), result.metrics.get("loss")
    if result.stopped_by:
        print(f"stopped by {result.stopped_by}; go on with --resume auto --out {result.out}")
    elif first is not None and last is not None:
        print(f"loss {first:.4f} -> {last:.4f} (-1 is perfect)")
    print(f"picture     {result.picture}")
    print(f"weights     {result.weights}")
    print(f"metrics     {result.out / 'metrics.jsonl'}")
    print(f"checkpoint  {result.checkpoint}")


@app.command(name="eval")
def evaluate(
    run: Name,
    data: str = "builtin",
    probe: str = "knn,linear",
    teacher: str | None = None,
    out: Path | None = None,
    device: str = "auto",
) -> None:
    """Judge a run's weights by k-NN and a linear probe, beside random init, pixels and the teacher.

    Args:
        run: a run's folder or a weights file in official naming.
        data: builtin, or a folder with one folder a class (or train/ and val/ with such).
        probe: knn, linear or both, with a comma.
        teacher: teacher to compare with; by default the run's own.
        out: JSON file; by default eval.json beside the weights.
        device: cpu, cuda or auto.
    """
    from eva_fast.evaluate import evaluate as judge
    from eva_fast.evaluate import print_table

    result = judge(
        run, data=data, probes=tuple(probe.split(",")), teacher=teacher, out=out, device=device
    )
    print_table(result)


def _words(argv: list[str]) -> tuple[list[str], Config]:
    """Takes `--config FILE` out of pretrain's words: (the rest, the configuration they start from)."""
    if argv[:1] != ["pretrain"]:
        return argv, Config()
    rest, path, words = [], None, iter(argv)
    for word in words:
        if word == "--config":
            path = next(words, None)
            if path is None:
                raise ValueError("--config needs a YAML file")
        elif word.startswith("--config="):
            path = word.removeprefix("--config=")
        else:
            rest.append(word)
    return rest, Config() if path is None else Config.from_yaml(path)


def main(argv: list[str] | None = None) -> None:
    """Entry point of the `eva-fast` command."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        words, start = _words(list(sys.argv[1:] if argv is None else argv))
        pretrain.__defaults__ = (start,)
        app.command(name="pretrain")(pretrain)
        app.cli(prog="eva-fast", description=__doc__.split("\n\n")[0], args=words)
    except (ValueError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
