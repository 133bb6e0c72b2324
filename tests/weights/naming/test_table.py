"""The tables' one function: both directions, prefixes, and what a table does not know."""

import pytest
import torch

from eva_fast.weights import naming
from eva_fast.weights.naming.table import ROWS, TRANSPOSED, Naming, Rule
from tests.weights.networks import same, student, tower

NAMES = Naming(
    "other",
    probes=("first.weight",),
    prefix="net.",
    rules=(
        Rule("a.{p}", "first.{p}"),
        Rule("blocks.{n}.qkv", ("layer.{n}.q", "layer.{n}.k", "layer.{n}.v"), ROWS),
        Rule("token", ()),
        Rule((), "extra.{rest}"),
    ),
    beside=(Rule("out", "head.weight", TRANSPOSED),),
)


def ours():
    return {
        "a.weight": torch.randn(2, 3),
        "a.bias": torch.randn(2),
        "blocks.0.qkv": torch.randn(6, 2),
        "blocks.11.qkv": torch.randn(6, 2),
        "out": torch.randn(4, 5),
    }


def test_both_directions():
    state = ours()
    theirs = NAMES.write(state)
    parts = [f"net.layer.{n}.{part}" for n in (0, 11) for part in "qkv"]
    assert set(theirs) == {"net.first.weight", "net.first.bias", *parts, "head.weight"}
    assert torch.equal(theirs["net.layer.11.k"], state["blocks.11.qkv"][2:4])
    assert torch.equal(theirs["head.weight"], state["out"].T)
    assert NAMES.find(theirs) == "net."
    same(NAMES.read(theirs, "net."), state)


@pytest.mark.parametrize("prefix", ["", "net.", "a.net.", "wrapped."])
def test_any_prefix(prefix):
    theirs = {name.replace("net.", prefix): value for name, value in NAMES.write(ours()).items()}
    if prefix == "a.net.":
        theirs["a.head.weight"] = theirs.pop("head.weight")
    assert NAMES.find(theirs) == prefix
    same(NAMES.read(theirs, prefix), ours_of(theirs, prefix))


def ours_of(theirs, prefix):
    """`theirs` brought to our names by hand."""
    qkv = {
        f"blocks.{n}.qkv": torch.cat([theirs[f"{prefix}layer.{n}.{part}"] for part in "qkv"])
        for n in (0, 11)
    }
    above = "a." if prefix == "a.net." else ""
    return {
        "a.weight": theirs[prefix + "first.weight"],
        "a.bias": theirs[prefix + "first.bias"],
        **qkv,
        "out": theirs[above + "head.weight"].T,
    }


def test_what_has_no_place():
    theirs = NAMES.write({**ours(), "token": torch.zeros(1)})  # they have none
    assert not any("token" in name for name in theirs)
    with pytest.raises(ValueError, match=r"other has no place for unheard\.of"):
        NAMES.write({**ours(), "unheard.of": torch.zeros(1)})
    more = {"net.extra.thing": torch.zeros(1), "net.odd": torch.ones(1), "odd": torch.zeros(1)}
    found = NAMES.read({**theirs, **more}, "net.")
    assert set(found) == {*ours(), "odd"} and found["odd"] == 1  # inside the prefix, unknown: kept


def test_a_missing_part():
    theirs = NAMES.write(ours())
    del theirs["net.layer.11.k"]
    with pytest.raises(ValueError, match=r"missing net\.layer\.11\.k$"):
        NAMES.read(theirs, "net.")


def test_only_the_network_is_read():
    """Looking for names costs nothing; what lies beside a tower is never asked for."""

    asked = set()

    class Lazy(dict):
        def __getitem__(self, name):
            asked.add(name)
            return super().__getitem__(name)

    theirs = NAMES.write(ours())
    file = Lazy({**theirs, "text.weight": torch.zeros(1), "net.extra.thing": torch.zeros(1)})
    assert naming.find(file, (NAMES,)) == (NAMES, "net.") and not asked
    NAMES.read(file, "net.")
    assert asked == set(theirs)


TOWERS = [
    *((names, sizes) for names in naming.CLIP for sizes in ({}, dict(dim=None))),
    # timm's towers always have the norm before the blocks, and are known by it
    *((names, dict(ln_pre=False)) for names in (naming.openai.CLIP, naming.hf.CLIP)),
]


@pytest.mark.parametrize("names, sizes", TOWERS, ids=lambda v: getattr(v, "library", str(v)))
def test_every_tower_naming_is_exact(names, sizes):
    state = tower(**sizes).state_dict()
    theirs = names.write(state)
    assert naming.find(theirs, naming.CLIP) == (names, names.prefix)
    same(names.read(theirs, names.prefix), state)


ALL_STUDENT_NAMINGS = (
    *naming.EVA,
    naming.timm.EVA,
    naming.timm.EVA_POOLED,
    naming.open_clip.EVA,
    naming.open_clip.EVA_POOLED,
)


@pytest.mark.parametrize("names", ALL_STUDENT_NAMINGS, ids=lambda names: names.library)
def test_every_student_naming_is_exact(names):
    state = student().state_dict()
    theirs = names.write(state)
    found, prefix = naming.find(theirs, naming.EVA)
    assert prefix == names.prefix
    kept = {"mask_token", "lm_head.weight", "lm_head.bias"} if "lm_head.bias" in theirs else set()
    expected = {n: t for n, t in state.items() if n in kept or not n.startswith(("mask", "lm_"))}
    same(found.read(theirs, prefix), expected)
