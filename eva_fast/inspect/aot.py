"""Compiles every Triton kernel for GPUs that are not here, and reads what the compiler made of it.

`triton.compile` needs a target's name, not the device. The cubin is inspected with the `cuobjdump`
that ships with Triton: registers, spills (a stack, or STL/LDL instructions), tensor-core
instructions (HMMA on sm_80, HGMMA on sm_90, UTC*MMA on sm_100), and the width of every global
access. Shared memory is compared with the device's limit here: the compiler does not do it.

`eva-fast doctor --aot` prints the table. The Triton interpreter replaces the compiler, so none of
this works in a process that runs under TRITON_INTERPRET=1.
"""

import ast
import collections
import concurrent.futures
import contextlib
import importlib
import pkgutil
import re
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import eva_fast.kernels
from eva_fast.files import cpu_count
from eva_fast.kernels.aot_case import VIT_B, VIT_G, VIT_G_FP32, AotCase, AotShape

TARGETS = (80, 90, 100)
SHAPES = (VIT_B, VIT_G, VIT_G_FP32)
# Shared memory a thread block can use (CUDA C Programming Guide, "Technical Specifications per
# Compute Capability").
SHARED_LIMIT_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}

_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,6}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")
_LOADS = ("LDG", "LDGSTS", "UTMALDG", "UBLKCP")
_STORES = ("STG", "UTMASTG")


def _require_compiler() -> None:
    try:
        from triton import knobs
    except ImportError as error:
        raise ValueError(
            f"the kernels cannot be compiled: triton is not installed ({error})"
        ) from error
    if knobs.runtime.interpret:
        raise ValueError(
            "the kernels cannot be compiled under TRITON_INTERPRET=1: unset it and start again"
        )


def cases(shape: AotShape, kernels: Iterable[str] | None = None) -> Iterator[tuple[str, AotCase]]:
    """(kernel file, case) of every kernel at `shape`; `kernels` limits it to these files.

    Raises ValueError for a file that does not exist or declares no case.
    """
    known = {}
    for module in pkgutil.iter_modules(eva_fast.kernels.__path__):
        loaded = importlib.import_module(f"eva_fast.kernels.{module.name}")
        if hasattr(loaded, "aot_cases"):
            known[module.name] = loaded
    chosen = list(known) if kernels is None else list(kernels)
    for name in chosen:
        if name not in known:
            raise ValueError(
                f"no kernel file {name!r} with ahead-of-time cases; there are {sorted(known)}"
            )
        for case in known[name].aot_cases(shape):
            yield name, case


def source(case: AotCase) -> Any:
    """Triton's source object, specialised as its launcher specialises a call with these arguments."""
    from triton.compiler import ASTSource

    function = case.kernel
    while not hasattr(function, "arg_names") or hasattr(function, "configs"):
        function = function.fn
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int], list] = {}
    for position, name in enumerate(function.arg_names):
        if name in case.constants:
            signature[name], constants[name] = "constexpr", case.constants[name]
            continue
        if name not in case.args:
            raise ValueError(f"{function.__name__}: the case gives no value for argument {name!r}")
        value = case.args[name]
        if isinstance(value, str):
            signature[name] = value
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value == 1:
            signature[name], constants[name] = "constexpr", 1
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
        if isinstance(value, str) or (isinstance(value, int) and value != 1 and value % 16 == 0):
            attributes[(position,)] = [["tt.divisibility", 16]]
    return ASTSource(function, signature, constants, attributes)


def width_bits(instruction: str) -> int:
    """Bits a thread moves with a global load or store instruction."""
    if instruction.startswith(("UTMA", "UBLKCP")):
        return 128  # the copy engine: always full lines
    parts = instruction.split(".")
    for bits in (256, 128, 64):
        if str(bits) in parts:
            return bits
    if {"U8", "S8"} & set(parts):
        return 8
    if {"U16", "S16"} & set(parts):
        return 16
    return 32


def inspect_case(file: str, case: AotCase, shape: AotShape) -> dict[str, Any]:
    """Compiles one kernel for `shape.capability` and returns its figures.

    Keys: file, kernel, shape, target, warps, stages, registers, shared_bytes, shared_limit_bytes,
    stack_bytes, spills (STL and LDL instructions), mma (tensor-core instructions), mma_kind, dot,
    loads, loads_128 (128 bits or wider), loads_32 (one 32-bit value: statistics, indices, scalars),
    loads_small_tile (64 bits: a tile too small for more, shared among all threads), loads_narrow
    (all the others: data that missed vectorisation), stores, stores_128, instructions.
    """
    import triton
    from triton.backends.compiler import GPUTarget

    compiled = triton.compile(
        source(case),
        target=GPUTarget("cuda", shape.capability, 32),
        options={"num_warps": case.num_warps, "num_stages": case.num_stages},
    )
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file_handle:
        file_handle.write(compiled.asm["cubin"])
        file_handle.flush()
        dump = subprocess.run(
            [str(tool), "--dump-resource-usage", "-sass", file_handle.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    usage = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", dump)}
    count = collections.Counter(_INSTRUCTION.findall(dump))

    def having(test) -> int:
        return sum(number for name, number in count.items() if test(name))

    def opcode(*names: str) -> int:
        return having(lambda name: name.split(".")[0] in names)

    def moved(opcodes: tuple[str, ...], test) -> int:
        return having(lambda name: name.split(".")[0] in opcodes and test(width_bits(name)))

    widths = (8, 16) if case.small_tiles else (8, 16, 64)
    kinds = [kind for kind in ("HMMA", "HGMMA", "UTCHMMA", "UTCQMMA", "UTCOMMA") if opcode(kind)]
    return {
        "file": file,
        "kernel": compiled.metadata.name + (f"[{case.label}]" if case.label else ""),
        "shape": shape.name,
        "target": f"sm_{shape.capability}",
        "warps": case.num_warps,
        "stages": case.num_stages,
        "registers": usage["REG"],
        "shared_bytes": compiled.metadata.shared,
        "shared_limit_bytes": SHARED_LIMIT_BYTES[shape.capability],
        "stack_bytes": usage["STACK"],
        "spills": opcode("STL", "LDL"),
        "mma": opcode(*kinds),
        "mma_kind": "+".join(kinds),
        "dot": case.dot,
        "loads": opcode(*_LOADS),
        "loads_128": moved(_LOADS, lambda bits: bits >= 128),
        "loads_32": moved(_LOADS, lambda bits: bits == 32),
        "loads_small_tile": moved(_LOADS, lambda bits: bits == 64) if case.small_tiles else 0,
        "loads_narrow": moved(_LOADS, lambda bits: bits in widths),
        "stores": opcode(*_STORES),
        "stores_128": moved(_STORES, lambda bits: bits >= 128),
        "instructions": sum(count.values()),
    }


def aot_report(
    targets: Iterable[int] = TARGETS,
    shapes: Iterable[AotShape] = SHAPES,
    kernels: Iterable[str] | None = None,
    workers: int | None = None,
) -> list[dict[str, Any]]:
    """One dict (see `inspect_case`) for every kernel, shape and target, in this order.

    targets: compute capabilities times ten, of 80, 90, 100. Compiled in parallel by `workers`
    threads (default: one a processor); Triton keeps the results on disk, a second call is quick.
    """
    _require_compiler()
    targets = tuple(targets)
    unknown = [target for target in targets if target not in SHARED_LIMIT_BYTES]
    if unknown:
        raise ValueError(f"unknown targets {unknown}; possible are {sorted(SHARED_LIMIT_BYTES)}")
    kernels = None if kernels is None else list(kernels)
    work = []
    for shape in shapes:
        for target in targets:
            aimed = replace(shape, capability=target)
            work += [(file, case, aimed) for file, case in cases(aimed, kernels)]
    with _parsing_alone(), concurrent.futures.ThreadPoolExecutor(workers or cpu_count()) as pool:
        rows = list(pool.map(lambda item: inspect_case(*item), work))
    return sorted(rows, key=lambda row: (row["file"], row["kernel"], row["shape"], row["target"]))


@contextlib.contextmanager
def _parsing_alone() -> Iterator[None]:
    """CPython counts the depth of `ast.parse` once for all threads: where one takes over in the middle
    of another's, both fail (python/cpython#106905, seen in 3.11). Triton parses at each compile."""
    parse, lock = ast.parse, threading.RLock()

    def alone(*args: Any, **options: Any) -> Any:
        with lock:
            return parse(*args, **options)

    ast.parse = alone  # type: ignore[assignment]
    try:
        yield
    finally:
        ast.parse = parse


def problems(rows: Iterable[dict[str, Any]]) -> list[str]:
    """What is wrong in a report: spills, a dot without tensor cores, too much shared memory, narrow
    loads. Empty when every kernel is as it should be."""
    found = []
    for row in rows:
        where = f"{row['file']}: {row['kernel']} at {row['shape']} for {row['target']}"
        if row["spills"]:
            found.append(f"{where}: {row['spills']} spill instructions, {row['stack_bytes']} bytes")
        if row["dot"] and not row["mma"]:
            found.append(f"{where}: a dot without tensor-core instructions")
        if row["shared_bytes"] > row["shared_limit_bytes"]:
            found.append(f"{where}: {row['shared_bytes']} bytes of shared memory")
        if row["loads_narrow"]:
            found.append(
                f"{where}: {row['loads_narrow']} of {row['loads']} global loads are narrow"
            )
    return found


def aot_table(rows: Iterable[dict[str, Any]]) -> Any:
    """The report as a rich table."""
    from rich.table import Table

    table = Table(title="Triton kernels compiled ahead of time")
    for heading in ("kernel", "shape", "target"):
        table.add_column(heading, no_wrap=True)
    for heading in ("warps", "registers", "shared", "spills", "mma", "loads 128", "stores 128"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            f"{row['file']}: {row['kernel'].lstrip('_')}",
            row["shape"],
            row["target"],
            str(row["warps"]),
            str(row["registers"]),
            f"{row['shared_bytes'] / 1024:.0f} KB",
            str(row["spills"]),
            f"{row['mma']} {row['mma_kind']}".strip() if row["dot"] else "",
            f"{row['loads_128']}/{row['loads_128'] + row['loads_narrow']}",
            f"{row['stores_128']}/{row['stores']}",
        )
    return table
