"""The rows of the ablation: one objective each, with the optimiser of its publication."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eva_fast.config import Config
from eva_fast.errors import UsageError
from eva_fast.model.sizes import ModelSizes, sizes_of
from eva_fast.objectives.setting import SIZE_OPTIONS
from eva_fast.presets import RECIPES

# What a row takes from its recipe. Student, teacher, batch, learning rate, warm-up and length are the
# same in all rows: the published ones are of other sizes.
PUBLISHED = (
    "objective", "drop_path", "crop_scale", "betas", "eps", "weight_decay", "clip_grad",
)  # fmt: skip
# Options that the ablation sets for each row.
SET = (
    "objective", "recipe", "seed", "steps", "epochs", "init_from", "checkpoint_every",
    "checkpoint_minutes", "keep_checkpoints", "picture_every",
)  # fmt: skip
TOKENIZER_SHARE = 0.25
"""Of a row's budget, where a tokenizer is trained first: 100 of the 100 + 300 epochs of BEiT v2."""
DRAWINGS: dict[str, Any] = {"depth": 6, "patch_size": 12}
"""The student on the built-in drawings, unless a person says another: that of a first run."""
DRAWN_BATCH, DRAWN_CODES = 32, 512
"""On the drawings: batches that learn more an image (docs/results.md), and no more codes than a first
batch has patches for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One way to train a student."""

    name: str
    title: str
    recipe: str
    extra: Callable[[ModelSizes], Mapping[str, Any]] = lambda student: {}
    """Further options of this row, that follow the student's sizes."""
    tokenizer: "Row | None" = None
    """Trained first, on a share of the budget; its run is the row's teacher."""

    def options(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """Options of the row's run: its publication's and its own, and what a person said on top."""
        recipe = RECIPES[self.recipe].options
        published = {name: recipe[name] for name in PUBLISHED if name in recipe}
        known = {**_of_drawings(said), **published}
        model = Config.from_options({**known, **said}).model
        student = sizes_of(model.model, **{name: getattr(model, name) for name in SIZE_OPTIONS})
        return {**known, **self.extra(student), **said}

    @property
    def trained(self) -> "tuple[Row, ...]":
        """The row and, before it, its tokenizer: what has a run."""
        return (self,) if self.tokenizer is None else (self.tokenizer, self)

    def share(self, part: "Row") -> float:
        """Of the row's budget, what goes to one of `trained`."""
        if self.tokenizer is None:
            return 1.0
        return TOKENIZER_SHARE if part is self.tokenizer else 1 - TOKENIZER_SHARE


def _of_drawings(said: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults on the built-in drawings; none elsewhere."""
    data = said.get("data", "builtin")
    if not isinstance(data, str) or data != "builtin":
        return {}
    student = {} if {"model", *SIZE_OPTIONS} & said.keys() else DRAWINGS
    return {**student, "batch_size": DRAWN_BATCH, "codebook_size": DRAWN_CODES}


def _decoder(student: ModelSizes) -> dict[str, int]:
    """MAE-B's decoder is two thirds as wide as its encoder, in heads of 32."""
    heads = max(1, round(student.embed_dim * 2 / 3 / 32))
    return {"decoder_dim": 32 * heads, "decoder_heads": heads}


VQKD = Row(name="vqkd", title="tokenizer (VQ-KD)", recipe="vqkd-b16")
ROWS = (
    Row(name="eva", title="masked features, regressed (EVA)", recipe="eva-g14"),
    Row(
        name="tokens", title="tokens of features (BEiT v2)", recipe="beit2-b16", tokenizer=VQKD
    ),
    Row(name="fd", title="all features, distilled (Feature Distillation)", recipe="fd-b16"),
    Row(
        name="mae", title="dropped features, regressed (MAE-style EVA)", recipe="eva-l14",
        extra=_decoder,
    ),
    Row(name="pixels", title="pixels (MAE)", recipe="mae-b16", extra=_decoder),
)  # fmt: skip

TABLES = {"Tokenise?": ("tokens", "eva"), "Distil?": ("fd", "eva")}
"""The two questions, and the rows that answer each; the other rows stand beside."""


def chosen_rows(names: Sequence[str]) -> tuple[Row, ...]:
    """The rows of those names, by default all. UsageError for an unknown one."""
    known = {row.name: row for row in ROWS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"there is no row {unknown[0]!r}: there are {', '.join(known)}")
    return tuple(known[name] for name in dict.fromkeys(names)) or ROWS


def said_of(config: Config) -> dict[str, Any]:
    """The options of a configuration that are not the defaults, but for its folder."""
    return {
        option.name: value
        for part in dataclasses.fields(Config)
        for option in dataclasses.fields(part.type)  # type: ignore[arg-type]
        if (value := getattr(getattr(config, part.name), option.name)) is not option.default
        and not _equal(value, option.default)
        and option.name not in ("out", "resume")
    }


def check_said(said: Mapping[str, Any]) -> None:
    """UsageError for an option that the ablation sets for each row, or that no run has."""
    for name in SET:
        if name in said:
            raise UsageError(f"{name} is set for each row: an ablation takes none")
    Config.from_options(dict(said))


def _equal(value: Any, default: Any) -> bool:
    """Equal numbers, words or pairs; a dataset or a teacher is no default."""
    simple = isinstance(value, bool | int | float | str | tuple)
    return simple and type(value) is type(default) and value == default
