"""The codebook of VQ-KD: nearest codes, its moving average, and its start by k-means.

Sources: BEiT v2 (Peng et al. 2022), section 3.1, and its code (microsoft/unilm, beit2,
norm_ema_quantizer.py); the facts, own code. Where that code has each process count its own share,
sums here are of the whole step, over all processes. Codes are unit rows and never train by gradient:

    m_c = unit(mean of the z that were given code c in the step)     c stays where there were none
    W_c <- unit(0.99 W_c + 0.01 m_c)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eva_fast.ops.nearest_code import nearest_code
from eva_fast.world import sum_

DECAY = 0.99
KMEANS_ROUNDS = 10


class Codes(nn.Module):
    """`weight` [C, d], the unit rows; the rest is in the official files, and unused."""

    weight: Tensor

    def __init__(self, count: int, width: int):
        super().__init__()
        weight = F.normalize(torch.randn(count, width), dim=1)
        self.register_buffer("weight", weight)
        self.register_buffer("cluster_size", torch.zeros(count))
        self.register_buffer("embed_avg", weight.clone())
        self.register_buffer("initted", torch.zeros(1))


class Quantiser(nn.Module):
    """Unit rows to their nearest codes.

    The module is called in each micro-batch of a step, and `update` once after it. `cluster_size` [C]
    is a statistic alone: the moving average of how many rows a step gives to each code, from 0 at the
    start of each pass over the images but the first.
    """

    cluster_size: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, count: int, width: int):
        super().__init__()
        self.embedding = Codes(count, width)
        self.register_buffer("cluster_size", torch.zeros(count))
        # Of the step so far; between steps all zero, so no part of a checkpoint.
        self.register_buffer("counts", torch.zeros(count), persistent=False)
        self.register_buffer("sums", torch.zeros(count, width), persistent=False)

    def codes(self, z: Tensor) -> Tensor:
        """int64 [M]: the nearest codes of unit rows z [M, d]."""
        return nearest_code(z.detach(), self.embedding.weight)[0]

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(quantised [M, d], index int64 [M]) of unit rows z [M, d]: codes of before this step's
        update, through which gradients pass straight to z. While it trains, the rows are added up."""
        index, counts, sums = nearest_code(z.detach(), self.embedding.weight, self.training)
        if self.training:
            self.counts += counts
            self.sums += sums
        return F.embedding(index, self.embedding.weight), index

    def used(self, steps: int) -> Tensor:
        """float32 []: the share of codes that were given a row in this step so far, or within about the
        last `steps` steps of this pass."""
        before = self.cluster_size >= (1 - DECAY) * DECAY**steps
        return (before | (self.counts > 0)).float().mean()

    @torch.no_grad()
    def update(self, applied: Tensor) -> None:
        """Moves the codes that the step's rows were given to, where `applied`, bool [], is True; in any
        case the next step starts from nothing."""
        weight = self.embedding.weight
        for own in (self.counts, self.sums):
            sum_(own)
        moved = F.normalize(weight * DECAY + towards(weight, self.counts, self.sums) * (1 - DECAY))
        used = applied & (self.counts > 0)
        weight.copy_(torch.where(used[:, None], moved, weight))
        size = self.cluster_size
        size.copy_(torch.where(applied, size * DECAY + self.counts * (1 - DECAY), size))
        self.counts.zero_()
        self.sums.zero_()

    @torch.no_grad()
    def start(self, samples: Tensor, generator: torch.Generator) -> None:
        """Codes and `cluster_size` from k-means of the unit rows samples [M, d]; its first means are
        random samples, each once where there are enough. generator: a CPU one, which draws them."""
        count, rows = len(self.embedding.weight), len(samples)
        if rows >= count:
            first = torch.randperm(rows, generator=generator)[:count]
        else:
            first = torch.randint(rows, (count,), generator=generator)
        means, counts = kmeans(samples, samples[first.to(samples.device)])
        self.embedding.weight.copy_(means)
        self.cluster_size.copy_(counts)


def towards(codes: Tensor, counts: Tensor, sums: Tensor) -> Tensor:
    """Unit mean [C, d] of each code's rows; the code itself where there are none."""
    means = F.normalize(sums / counts.clamp(min=1)[:, None])
    return torch.where(counts[:, None] > 0, means, codes)


def kmeans(samples: Tensor, first: Tensor, rounds: int = KMEANS_ROUNDS) -> tuple[Tensor, Tensor]:
    """(means [C, d], counts [C] of the last round) of unit rows samples [M, d], by largest product.
    first: the means to begin with; one that gets no samples stays."""
    means, counts = first, first.new_zeros(len(first))
    for _ in range(rounds):
        _, counts, sums = nearest_code(samples, means, True)
        means = towards(means, counts, sums)
    return means, counts
