"""One of two processes of tests/layers/test_fsdp.py: the student's step under FSDP2."""

import sys

import torch
import torch.distributed as dist
from torch.distributed.fsdp import (
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

import eva_fast
from eva_fast.layers import keep_copies
from eva_fast.model import EvaViT

SIZES = dict(
    img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, mlp_hidden=70, predict_dim=20
)
BATCH, MASKED, PROCESSES = 4, 6, 2


def student(**options) -> EvaViT:
    torch.manual_seed(0)
    model = eva_fast.create_model(**SIZES, **options)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(5)
    images = torch.randn(BATCH, 3, 32, 32)
    mask = torch.rand(BATCH, 16).argsort(1)[:, :MASKED].sort(1).values.int()
    return images, mask, torch.randn(BATCH * MASKED, SIZES["predict_dim"])


def own_share(rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    images, mask, target = batch()
    return images.chunk(2)[rank], mask.chunk(2)[rank], target.chunk(2)[rank]


def sharded(model: EvaViT, **options) -> EvaViT:
    for block in model.blocks:
        fully_shard(block, **options)
    fully_shard(model, **options)
    register_fsdp_forward_method(model, "loss")
    return model


def main(rank: int, store: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES)
    found = {}
    for reshard in (True, False):
        for drop_path in (0.0, 0.3):
            model = sharded(student(drop_path=drop_path), reshard_after_forward=reshard)
            assert keep_copies(model, torch.bfloat16) == {}
            torch.manual_seed(7 + rank)
            loss = model.loss(*own_share(rank))
            loss.backward()
            found[f"fp32 {reshard} {drop_path}"] = results(model, loss)
    for reshard in (True, False):
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        model = sharded(student(drop_path=0.3), reshard_after_forward=reshard, mp_policy=policy)
        torch.manual_seed(7 + rank)
        loss = model.loss(*own_share(rank))
        loss.backward()
        found[f"bf16 {reshard} 0.3"] = results(model, loss)
    if rank == 0:
        torch.save(found, out)
    dist.destroy_process_group()


def results(model: EvaViT, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """The mean loss of the processes, and every gradient put together."""
    mean = loss.detach().float()
    dist.all_reduce(mean)
    gradients = {name: p.grad.full_tensor() for name, p in model.named_parameters()}
    return {"loss": mean / PROCESSES, **gradients}


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
