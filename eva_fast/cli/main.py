"""The entry point: words to a command, errors to an exit status.

Exit status: 0 done (also when a signal stopped a run after its checkpoint), 1 the run failed,
2 wrong use, 130 interrupted before training or a second time. A fault of the program keeps its
traceback.
"""

import logging
import sys

import tyro

from eva_fast import cli
from eva_fast.cli import bench, data, doctor, evaluate, export, plan, pretrain, profile
from eva_fast.cli.words import NO_OPTIONS
from eva_fast.config import Config
from eva_fast.errors import RunError, UsageError

_CONFIGURED = {"pretrain": pretrain.pretrain, "profile": profile.profile}
"""Commands that take a whole configuration, and --config FILE for it."""


def _app() -> tyro.extras.SubcommandApp:
    app = tyro.extras.SubcommandApp()
    app.command(name="pretrain")(pretrain.pretrain)
    app.command(name="eval")(evaluate.evaluate)
    app.command(name="export")(export.export)
    app.command(name="doctor")(doctor.doctor)
    app.command(name="plan")(plan.plan)
    for name, command in (("data", {"check": data.check}), ("bench", {"report": bench.report})):
        inner = tyro.extras.SubcommandApp()
        for word, function in command.items():
            inner.command(name=word)(function)
        app.command(inner, name=name)
    app.command(name="profile")(profile.profile)
    return app


def _words(argv: list[str]) -> tuple[list[str], Config]:
    """Takes `--config FILE` out of the words: (the rest, the configuration they start from)."""
    if not argv or argv[0] not in _CONFIGURED:
        return argv, NO_OPTIONS
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
    return rest, NO_OPTIONS if path is None else Config.from_yaml(path)


def main(argv: list[str] | None = None) -> None:
    """Entry point of the `eva-fast` command."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        words, start = _words(list(sys.argv[1:] if argv is None else argv))
        for command in _CONFIGURED.values():  # flags win over the file: it gives their defaults
            command.__defaults__ = (start, *(command.__defaults__ or ())[1:])
        description = (cli.__doc__ or "").split("\n\n")[0]
        _app().cli(prog="eva-fast", description=description, args=words)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
