"""What the compiler makes of every kernel, for GPUs that are not here."""

import io
import json
import re
from dataclasses import replace

import pytest

from eva_fast.ops import registry

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.skipif(
    registry.interpreted(), reason="the interpreter replaces the compiler in this process"
)

from eva_fast.inspect import aot  # noqa: E402
from eva_fast.kernels.aot_case import VIT_B, VIT_G, VIT_G_FP32, AotCase  # noqa: E402

DOTS = [
    "biased_attention_dbias", "layer_norm_project", "masked_cosine_head", "packed_attention",
    "packed_attention_dkv", "packed_attention_dq", "packed_attention_fp8",
]  # fmt: skip


def row_kernels():
    return sorted({name for name, _ in aot.cases(VIT_G)} - set(DOTS))


@pytest.fixture(scope="module")
def dot_rows():
    """Every kernel with a dot, at ViT-g's shape, for all three targets."""
    return aot.aot_report(shapes=[VIT_G], kernels=DOTS)


@pytest.mark.slow
def test_kernels_with_a_dot(dot_rows):
    assert aot.problems(dot_rows) == []
    with_dot = [row for row in dot_rows if row["dot"]]
    assert {row["target"] for row in with_dot} == {"sm_80", "sm_90", "sm_100"}
    for row in with_dot:
        wanted = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA"}[row["target"]]
        assert wanted in row["mma_kind"].split("+"), row
        assert row["registers"] <= 255 and row["stack_bytes"] == 0
        assert row["loads_128"] > 0


@pytest.mark.slow
def test_row_kernels():
    rows = aot.aot_report(targets=[90], shapes=[VIT_G], kernels=row_kernels())
    assert aot.problems(rows) == []
    assert {"gather_norm", "add_layer_norm", "bias_gelu", "adamw"} <= {row["file"] for row in rows}


@pytest.mark.slow
def test_a_sequence_with_a_partial_tile():
    """ViT-B at patch 16 has 1 + 196 tokens: the last tile is masked, and still loads 128 bits."""
    rows = aot.aot_report(targets=[80], shapes=[VIT_B], kernels=["packed_attention"])
    assert aot.problems(rows) == []


@pytest.mark.slow
def test_kernels_with_a_dot_in_fp32():
    """Full fp32 products keep all operands in registers: tiles as large as those of bf16 spill."""
    assert aot.problems(aot.aot_report([80, 100], [VIT_G_FP32], DOTS)) == []


@pytest.mark.slow
def test_table_and_json(dot_rows):
    from rich.console import Console

    assert json.loads(json.dumps(dot_rows)) == dot_rows
    wanted = {"kernel", "target", "registers", "shared_bytes", "spills", "mma", "loads", "loads_128",
              "stores_128"}  # fmt: skip
    assert all(wanted <= set(row) for row in dot_rows)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(aot.aot_table(dot_rows))
    text = console.export_text()
    assert "masked_cosine_kernel" in text and "HGMMA" in text and "sm_100" in text


# Instructions of a thread for its 16 elements, both kinds of GELU. With `tl.erf` and an exponential
# beside it they were 640 and 984, and an H100 takes longer to issue those than to move the data.
GELU_INSTRUCTIONS = {"bias_gelu_forward_kernel": 448, "bias_gelu_backward_kernel": 688}


@pytest.mark.slow
def test_gelu_takes_few_instructions():
    for row in aot.aot_report(targets=[90], shapes=[VIT_G], kernels=["bias_gelu"]):
        assert row["instructions"] <= GELU_INSTRUCTIONS[row["kernel"].split("[")[0]], row


@pytest.mark.parametrize("width", [1408, 768, 384, 192])
def test_few_lanes_of_the_norm_backward_idle(width):
    shape = replace(VIT_G, width=width)
    (case,) = [c for _, c in aot.cases(shape, ["add_layer_norm"]) if "HEAD" in c.constants]
    columns = case.constants["HEAD"] + case.constants["TAIL"]
    assert width <= columns and columns - width <= columns / 10


def test_every_kernel_declares_its_cases():
    """A kernel file without cases would pass unseen. Functions that are never launched themselves are
    compiled as parts of those that call them."""
    import pkgutil
    from pathlib import Path

    import eva_fast.kernels

    declared = {name for name, _ in aot.cases(VIT_G)}
    for module in pkgutil.iter_modules(eva_fast.kernels.__path__):
        source = Path(module.module_finder.path) / f"{module.name}.py"  # type: ignore[union-attr]
        text = source.read_text()
        if "@triton.jit" in text and re.search(r"_kernel\[", text):
            assert module.name in declared, module.name


def test_arguments_are_specialised_as_the_launcher_does():
    """A stride of 1 is a constant; multiples of 16 and pointers are marked; other values are not."""
    from eva_fast.kernels.gather_norm import gather_norm_kernel

    (case, *_) = [c for _, c in aot.cases(VIT_G, ["gather_norm"]) if c.constants.get("WRITE_Y")]
    case = replace(case, args={**case.args, "s_row": 1, "s_image": 8, "K": 16})
    source = aot.source(case)
    names = gather_norm_kernel.fn.arg_names
    marked = {names[position] for (position,) in source.attrs}
    assert source.signature["s_row"] == "constexpr" and source.signature["eps"] == "fp32"
    assert "K" in marked and "p_x" in marked and not {"s_image", "s_row", "eps"} & marked


@pytest.mark.parametrize(
    "instruction, bits",
    [
        ("LDG.E.128.CONSTANT", 128),
        ("LDG.E.LTC128B.64", 64),
        ("LDG.E.U16", 16),
        ("LDG.E", 32),
        ("LDGSTS.E.BYPASS.LTC128B.128", 128),
        ("LDG.E.ENL2.256", 256),
        ("UTMALDG.2D", 128),
    ],
)
def test_width_of_an_access(instruction, bits):
    assert aot.width_bits(instruction) == bits


def test_problems_are_named():
    row = {"file": "f", "kernel": "k", "shape": "s", "target": "sm_80", "spills": 0, "dot": True,
           "stack_bytes": 0, "mma": 4, "shared_bytes": 1, "shared_limit_bytes": 2, "loads": 9,
           "loads_narrow": 0}  # fmt: skip
    assert aot.problems([row]) == []
    for change, words in (
        ({"spills": 3, "stack_bytes": 16}, "3 spill instructions"),
        ({"mma": 0}, "without tensor-core"),
        ({"shared_bytes": 3}, "3 bytes of shared memory"),
        ({"loads_narrow": 2}, "2 of 9 global loads"),
    ):
        (found,) = aot.problems([row | change])
        assert words in found and "k at s for sm_80" in found


def test_bad_requests():
    with pytest.raises(ValueError, match=r"unknown targets \[75\]"):
        aot.aot_report(targets=[75])
    with pytest.raises(ValueError, match="no kernel file 'nothing'"):
        aot.aot_report(kernels=["nothing"])
    (_, case) = next(aot.cases(VIT_G, ["gather_norm"]))
    missing = AotCase(case.kernel, {}, case.constants)
    with pytest.raises(ValueError, match="no value for argument 'p_x'"):
        aot.source(missing)


def test_not_under_the_interpreter(monkeypatch):
    from triton import knobs

    monkeypatch.setattr(knobs.runtime, "interpret", True)
    with pytest.raises(ValueError, match="unset it"):
        aot.aot_report()
