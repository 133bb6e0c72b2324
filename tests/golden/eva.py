"""EVA-01's student: outputs, gradients, and steps of training, by every implementation that runs.

`NAME.param_groups.json` beside `NAME.safetensors` says which parameters decay.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import eva_fast
from eva_fast import native
from eva_fast.ops import set_kernels
from eva_fast.train import decay_groups
from tests.golden import Check, largest, read
from tests.golden.training import apart, train, worst_of

SIZES = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_hidden", "predict_dim")
GROUPS = ".param_groups.json"


def check(path: Path) -> Iterator[Check]:
    if path.name.endswith(GROUPS):
        yield from _groups(path)
        return
    tensors, meta = read(path)
    for kernels in ("torch", "native") if native.available() else ("torch",):
        set_kernels(kernels)
        try:
            for row in _outputs(tensors, meta, kernels):
                yield row._replace(what=f"{kernels}: {row.what}")
        finally:
            set_kernels("auto")


def student(tensors: dict, meta: dict, kernels: str):
    """The file's model with its parameters."""
    model = eva_fast.create_model(**{k: int(meta[k]) for k in SIZES}, kernels=kernels)
    model.load_official({k[6:]: v for k, v in tensors.items() if k.startswith("param.")})
    return model


def _outputs(t: dict, meta: dict, kernels: str) -> Iterator[Check]:
    model = student(t, meta, kernels)
    yield Check(
        "features", largest(model.forward_features(t["image"], t["mask"]), t["features"]), 1e-5
    )
    yield Check("prediction", largest(model(t["image"], t["mask"]), t["prediction"]), 1e-5)
    loss = model.loss(t["image"], t["mask"], t["target"])
    yield Check("loss", largest(loss, t["loss"]), 1e-5)
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters()}
    yield worst_of("gradients", gradients, t, "grad.", 1e-4)
    yield from _steps(t, meta, model)


def _steps(t: dict, meta: dict, model) -> Iterator[Check]:
    found = train(model, t["lr"], meta, lambda: model.loss(t["image"], t["mask"], t["target"]))
    yield Check(f"losses of {len(found.losses)} steps", largest(found.losses, t["losses"]), 1e-4)
    yield Check("gradient norms (relative)", apart(found.norms, t["grad_norms"]), 1e-4)
    after = dict(model.named_parameters())
    yield worst_of("parameters after them", after, t, "after.", 1e-4, largest)


def _groups(path: Path) -> Iterator[Check]:
    tensors, meta = read(path.with_name(path.name.removesuffix(GROUPS) + ".safetensors"))
    official = json.loads(path.read_text())
    found = decay_groups(student(tensors, meta, "torch"))
    for name, names in zip(("decay", "no_decay"), found):
        yield Check(f"names in {name} that differ", float(len(set(names) ^ set(official[name]))), 0)
