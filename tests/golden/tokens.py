"""The second phase of VQ-KD's file, `mim.*`: the student that predicts the trained tokenizer's codes."""

from collections.abc import Iterator

from torch import Tensor

from eva_fast.model import ModelSizes
from eva_fast.model.token_vit import TokenViT
from eva_fast.train import decay_groups
from tests.golden import Check, relative
from tests.golden.training import worst_of


def rows(t: dict, meta: dict[str, str], kernels: str, codes: Tensor) -> Iterator[Check]:
    """codes: int64 [B,N], what the trained tokenizer gives the file's images."""
    mask, labels = t["mim.mask"], t["mim.labels"]
    yield Check("mim labels that differ", float((codes[mask] != labels).sum()), 0)
    student = _student(t, meta, kernels)
    images = t["mim.image"]
    logits, told_by_cls = student.logits(images, mask)
    yield Check("mim logits", relative(logits, t["mim.logits"]), 2e-5)
    yield Check("mim logits of the branch", relative(told_by_cls, t["mim.logits_cls"]), 2e-5)
    found = student.losses(images, mask, labels)
    for name, value, official in zip(
        ("", " of patches", " of the branch"), (found.total(), *found[:2]), t["mim.loss"]
    ):
        yield Check(f"mim loss{name}", relative(value, official), 2e-6)
    found.total().backward()
    gradients = {n: p.grad for n, p in student.named_parameters()}
    yield worst_of("mim gradients", gradients, t, "mim.grad.", 2e-4)
    spared = len(decay_groups(student)[1]) - int(t["mim.no_decay_count"])
    yield Check("mim parameters without decay, more or fewer", float(abs(spared)), 0)


def _student(t: dict, meta: dict[str, str], kernels: str) -> TokenViT:
    """The file's student with its parameters."""
    width = int(meta["embed_dim"])
    sizes = ModelSizes(
        img_size=int(meta["img_size"]), patch_size=int(meta["patch_size"]), embed_dim=width,
        depth=int(meta["mim_depth"]), num_heads=int(meta["num_heads"]), mlp_hidden=4 * width,
        predict_dim=int(meta["codes"]),
    )  # fmt: skip
    student = TokenViT(
        sizes, layer_scale=float(meta["mim_layer_scale"]), early=int(meta["mim_early_layers"]),
        branch_depth=int(meta["mim_head_layers"]), kernels=kernels,
    )  # fmt: skip
    student.load_official({k[10:]: v for k, v in t.items() if k.startswith("mim.param.")})
    return student
