"""`eva-fast`: pretrain, eval, export, plan, profile, doctor, data check, bench report.

Exit status: 0 done (also when a signal stopped a run after its checkpoint), 1 the run failed,
2 wrong use, 130 interrupted before training or a second time. A fault of the program keeps its
traceback.
"""

import json as json_module
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from eva_fast.config import Config
from eva_fast.errors import MissingFileError, RunError, UsageError

app = tyro.extras.SubcommandApp()
data_app = tyro.extras.SubcommandApp()
bench_app = tyro.extras.SubcommandApp()
_DEFAULT = Config()
Name = tyro.conf.Positional[str]


@app.command(name="pretrain")
def pretrain(
    config: Annotated[tyro.conf.OmitArgPrefixes[Config], tyro.conf.arg(name="")] = _DEFAULT,
) -> None:
    """Pre-train a student on images. With no options: the built-in drawings, HOG features as
    teacher, a small ViT, about two minutes on two cores. --config FILE.yaml gives options from a
    file (`config.yaml` of a run is one); flags win over it."""
    from eva_fast.pretrain import run

    result = run(config)
    first, last = result.metrics.get("first_loss"), result.metrics.get("loss")
    if result.stopped_by:
        print(
            f"stopped by {result.stopped_by}; go on with: eva-fast pretrain "
            f"--config {result.out / 'config.yaml'} --out {result.out} --resume auto"
        )
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


@app.command(name="export")
def export(run: Name, out: Path) -> None:
    """Write a run's weights as safetensors in official naming, which timm's eva_* models load.

    Args:
        run: a run's folder, one of its checkpoints, or a weights file.
        out: the file to write.
    """
    from eva_fast.export import export_weights

    print(export_weights(run, out))


@app.command(name="doctor")
def doctor(aot: bool = False, json: bool = False) -> None:
    """Show what is installed and which kernels run.

    Args:
        aot: compile every Triton kernel for A100, H100 and B200 (needs no GPU) and show registers,
            shared memory, spills, tensor-core instructions and wide loads.
        json: print JSON instead of tables.
    """
    if aot:
        from eva_fast.plan.aot import aot_report, aot_table

        rows = aot_report()
        _show(rows, None if json else aot_table(rows))
    else:
        from eva_fast.doctor import diagnose, render

        report = diagnose()
        _show(report, None if json else render(report))


@app.command(name="plan")
def plan(
    model: str = "eva_g_patch14_224",
    device: str = "h100",
    gpus: int = 1,
    batch: int = 4096,
    precision: str = "bf16",
    formulation: str = "eva_fast",
    sharding: str = "none",
    epochs: float = 150,
    images: float = 29.6e6,
    teacher: bool = True,
    json: bool = False,
) -> None:
    """Predict memory, speed and days of a run before buying it. Counted and predicted, not measured.

    Args:
        model: student by name.
        device: a100-40, a100-80, h100, h100-pcie, h200, b200, or cpu (measured here).
        gpus: how many of them.
        batch: images a step over all devices.
        precision: bf16, fp16 or fp32.
        formulation: eva_fast, tuned (well-written PyTorch) or official.
        sharding: none, optimizer (ZeRO-1) or full (FSDP).
        epochs: passes over the data.
        images: images a pass.
        teacher: whether CLIP ViT-L/14 runs beside the student.
        json: print JSON instead of tables.
    """
    from eva_fast.plan import plan as make_plan
    from eva_fast.plan.report import render

    found = make_plan(
        model, device, gpus, batch, precision=precision, formulation=formulation,
        sharding=sharding, epochs=epochs, images=images, teacher=teacher,
    )  # fmt: skip
    _show(found.to_dict(), None if json else render(found))


@data_app.command(name="check")
def data_check(
    data: Name,
    limit: int = 10_000,
    image_size: int = 224,
    patch_size: int = 14,
    gpu_images_per_second: float | None = None,
    contact_sheet: Path | None = None,
    json: bool = False,
) -> None:
    """Read a data set as training does: counts, sizes, formats, unreadable files, speed.

    Args:
        data: what --data of pretrain takes.
        limit: images to decode, spread by chance; 0 for all.
        image_size: side of the crops that are timed and drawn, in pixels.
        patch_size: side of a patch in pixels.
        gpu_images_per_second: a training speed, to say how many cores feed it.
        contact_sheet: write a PNG of crops and their masks here.
        json: print JSON instead of tables.
    """
    from eva_fast.data.check import check, render

    found = check(
        data, limit=limit or None, image_size=image_size, patch_size=patch_size,
        gpu_images_per_second=gpu_images_per_second, contact_sheet=contact_sheet,
    )  # fmt: skip
    _show(found, None if json else render(found))


app.command(data_app, name="data")


@app.command(name="profile")
def profile(
    config: Annotated[tyro.conf.OmitArgPrefixes[Config], tyro.conf.arg(name="")] = _DEFAULT,
    timed: int = 10,
    warmup: int = 3,
    watched: int = 3,
    trace_out: Path | None = None,
) -> None:
    """Run some steps of a real run: images/s, waiting for data, MFU, top operators, Chrome trace,
    memory over time. Takes the options of pretrain, --config too; length and checkpoints are ignored.

    Args:
        config: the run.
        timed: steps timed with nothing attached.
        warmup: steps before them.
        watched: steps under the profiler after them.
        trace_out: folder for trace.json, memory.png and profile.json; by default runs/profile-TIME.
    """
    from eva_fast.profile import profile as make_profile
    from eva_fast.profile import render

    found = make_profile(config, steps=timed, warmup=warmup, watched=watched, out=trace_out)
    Console().print(render(found))


@bench_app.command(name="report")
def bench_report(results: tuple[Path, ...] = (), out: Path = Path("bench/results")) -> None:
    """Turn result files of `pytest bench/ --benchmark` into Markdown and PNG plots.

    Args:
        results: the files; by default every JSON in the folder of --out.
        out: folder for pages and plots.
    """
    from eva_fast.plan.bench_report import write_report

    found = list(results) or sorted(out.glob("*.json"))
    if not found:
        raise MissingFileError(f"no result files in {out}: run pytest bench/ --benchmark first")
    for path in write_report(found, out):
        print(path)


app.command(bench_app, name="bench")


def _show(found: Any, table: Any) -> None:
    """Prints `table`, or `found` as JSON where there is none."""
    if table is None:
        print(json_module.dumps(found, indent=1, default=str))
    else:
        Console().print(table)


def _words(argv: list[str]) -> tuple[list[str], Config]:
    """Takes `--config FILE` out of the words: (the rest, the configuration they start from)."""
    if argv[:1] not in (["pretrain"], ["profile"]):
        return argv, _DEFAULT
    rest, path, words = [], None, iter(argv)
    for word in words:
        if word == "--config":
            path = next(words, None)
            if path is None:
                raise UsageError("--config needs a YAML file")
        elif word.startswith("--config="):
            path = word.removeprefix("--config=")
        else:
            rest.append(word)
    return rest, _DEFAULT if path is None else Config.from_yaml(path)


def main(argv: list[str] | None = None) -> None:
    """Entry point of the `eva-fast` command."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        words, start = _words(list(sys.argv[1:] if argv is None else argv))
        for command in (pretrain, profile):  # flags win over the file: it gives their defaults
            command.__defaults__ = (start, *(command.__defaults__ or ())[1:])
        app.cli(prog="eva-fast", description=__doc__.split("\n\n")[0], args=words)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
