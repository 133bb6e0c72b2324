"""What the recipes' pages say in their first rows that a run costs is what `eva-fast plan` says, within
two percent."""

import re

import pytest

import eva_fast
from eva_fast.planning import planner
from tests.pages.blocks import ROOT

RECIPES = ROOT / "docs" / "recipes"
ROW = re.compile(
    r"^\| (\d+) (H100|A100) 80 GB \| (.+?) \| ([\d,]+) \| ([\d.]+) GB \| ([\d,]+) \| ([\d.]+) \|$",
    re.M,
)
SMALL_ROW = re.compile(r"^\| `(eva_\w+)` \| ([\d.]+) GB \| ([\d,]+) \| ([\d.]+) \|$", re.M)
HARDWARE = {"H100": "h100", "A100": "a100-80"}
OF_PAGE = {"eva-g.md": ("eva01", 29.6e6), "eva-l.md": ("eva-l14", 14e6)}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not RECIPES.is_dir(), reason="needs a checkout"),
]


def number(text):
    return float(text.replace(",", ""))


def rows(page, pattern):
    path = RECIPES / page
    return pattern.findall(path.read_text()) if path.is_file() else []


@pytest.fixture(autouse=True)
def as_asked_alone(monkeypatch):
    """Other ways to cut the batch are not planned."""
    monkeypatch.setattr(planner, "_cuts", lambda share: [share])


def check(plan, memory, images_per_second, days):
    asked = plan.asked
    assert asked.memory.total / 1e9 == pytest.approx(number(memory), rel=0.02)
    assert asked.images_per_second(plan.gpus) == pytest.approx(number(images_per_second), rel=0.02)
    assert plan.days_of(asked) == pytest.approx(days, rel=0.05)


@pytest.mark.parametrize(
    ("page", "row"), [(page, rows(page, ROW)[0]) for page in OF_PAGE if rows(page, ROW)], ids=str
)
def test_a_published_recipe(page, row):
    gpus, hardware, how, images, memory, rate, days = row
    recipe, count = OF_PAGE[page]
    accumulate = int(how.strip("`").removeprefix("--accumulate ")) if "accumulate" in how else 1
    plan = eva_fast.plan(
        HARDWARE[hardware], gpus=int(gpus), images=count, recipe=recipe, accumulate=accumulate,
        require_fit=False,
    )  # fmt: skip
    assert plan.asked.micro_batch == number(images) and plan.asked.fits
    check(plan, memory, rate, number(days))


@pytest.mark.parametrize("row", rows("own-images.md", SMALL_ROW)[:1], ids=str)
def test_a_small_student(row):
    model, memory, rate, hours = row
    plan = eva_fast.plan(
        "h100", images=1e5, model=model, teacher="openai/ViT-L-14", batch_size=256, epochs=100.0
    )
    check(plan, memory, rate, number(hours) / 24)


def test_there_are_rows():
    assert len(rows("eva-g.md", ROW)) >= 4 and len(rows("eva-l.md", ROW)) >= 4
    assert len(rows("own-images.md", SMALL_ROW)) >= 2
