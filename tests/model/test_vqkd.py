"""The tokenizer and its codebook. Its numbers are those of tests/golden/vqkd_micro.safetensors."""

import pytest
import torch
import torch.nn.functional as F

from eva_fast.model import ModelSizes
from eva_fast.model.quantiser import Quantiser, kmeans
from eva_fast.model.vqkd import VqKd, VqKdSizes
from eva_fast.objectives.vqkd import TrainTokenizer
from eva_fast.ops import registry
from tests.golden import FOLDER, vqkd

YES, NO = torch.tensor(True), torch.tensor(False)


@pytest.fixture
def rows():
    return F.normalize(torch.randn(60, 8), dim=1)


def codebook(quantiser):
    return quantiser.embedding.weight.clone()


@pytest.mark.interpreted
@pytest.mark.skipif(not registry.interpreted(), reason="for the process that interprets Triton")
def test_golden_by_the_interpreted_kernels():
    found = list(vqkd.check(FOLDER / "vqkd_micro.safetensors"))
    assert found and not [row for row in found if not row.ok]


def test_published_size():
    with torch.device("meta"):
        student = ModelSizes(
            img_size=224, patch_size=16, embed_dim=768, depth=12, num_heads=12, mlp_hidden=3072,
            predict_dim=512,
        )  # fmt: skip
        model = VqKd(VqKdSizes(student=student))
    assert sum(p.numel() for p in model.parameters()) == 108_829_216
    names = set(model.state_dict())
    assert {"quantize.embedding.weight", "quantize.cluster_size", "encoder.fc_norm.weight"} <= names
    assert not {n for n in names if n.startswith("quantize.") and ("counts" in n or "sums" in n)}


def test_micro_batches_move_the_codebook_as_the_whole_batch(rows):
    torch.manual_seed(1)
    whole = Quantiser(24, 8)
    parts = Quantiser(24, 8)
    parts.load_state_dict(whole.state_dict())
    before = codebook(whole)
    whole(rows)
    for part in rows.chunk(4):
        parts(part)
    for quantiser in (whole, parts):
        quantiser.update(YES)
    assert not torch.equal(codebook(whole), before)
    torch.testing.assert_close(codebook(parts), codebook(whole), rtol=0, atol=1e-7)
    torch.testing.assert_close(parts.cluster_size, whole.cluster_size, rtol=0, atol=0)
    unused = whole.cluster_size == 0
    assert unused.any() and torch.equal(codebook(whole)[unused], before[unused])


@pytest.mark.parametrize("bad", [False, True], ids=["finite rows", "rows of NaN"])
def test_a_skipped_step_moves_nothing(rows, bad):
    quantiser = Quantiser(24, 8)
    before = {name: value.clone() for name, value in quantiser.state_dict().items()}
    quantiser(rows * torch.nan if bad else rows)
    quantiser.update(NO)
    for name, value in quantiser.state_dict().items():
        assert torch.equal(value, before[name]), name
    quantiser(rows)
    quantiser.update(YES)
    fresh = Quantiser(24, 8)
    fresh.load_state_dict(before)
    fresh(rows)
    fresh.update(YES)
    assert torch.equal(codebook(quantiser), codebook(fresh))  # nothing of the skipped step was left


def test_evaluation_adds_nothing_up(rows):
    quantiser = Quantiser(24, 8).eval()
    quantiser(rows)
    assert not quantiser.counts.any() and not quantiser.sums.any()


@pytest.mark.parametrize("count", [60, 5], ids=["enough samples", "fewer samples than codes"])
def test_start_is_k_means_of_random_samples(rows, count):
    quantiser, samples = Quantiser(24, 8), rows[:count]
    quantiser.start(samples, torch.Generator().manual_seed(3))
    again = Quantiser(24, 8)
    again.start(samples, torch.Generator().manual_seed(3))
    assert torch.equal(codebook(quantiser), codebook(again))
    assert quantiser.cluster_size.sum() == count
    nearness = (samples @ codebook(quantiser).t()).amax(1)
    assert nearness.mean() > 0.7 and codebook(quantiser).norm(dim=1).allclose(torch.ones(24))


def test_k_means_leaves_an_empty_cluster_where_it_is(rows):
    first = torch.cat((rows[:3], -rows.mean(0, keepdim=True)))
    first[3] = -F.normalize(rows.sum(0), dim=0)
    near = F.normalize(rows + 3 * F.normalize(rows.sum(0), dim=0), dim=1)
    means, counts = kmeans(near, first)
    assert counts[3] == 0 and torch.equal(means[3], first[3])


def test_gradients_pass_the_codes_by_and_never_reach_them():
    student = ModelSizes(
        img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, mlp_hidden=16, predict_dim=6
    )
    model = VqKd(VqKdSizes(student=student, codes=5, code_dim=4, decoder_depth=1), kernels="torch")
    _, _, _, reconstruction = model(torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8))
    reconstruction.square().sum().backward()
    assert model.encoder.patch_embed.proj.weight.grad.abs().sum() > 0
    assert not model.quantize.embedding.weight.requires_grad


def test_bytes_are_what_floats_in_minus_one_to_one_are():
    student = ModelSizes(
        img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, mlp_hidden=16, predict_dim=6
    )
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    for kernels in ("torch", "auto"):
        model = VqKd(VqKdSizes(student=student, codes=5, code_dim=4), kernels=kernels)
        expected = model.encode(2 * (images.float() / 255) - 1)
        torch.testing.assert_close(model.encode(images), expected, rtol=1e-5, atol=1e-5)


def test_codes_in_use_are_of_one_pass():
    """Those of this step count at once; a new pass begins with none."""
    student = ModelSizes(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=1, mlp_hidden=8)
    model = VqKd(VqKdSizes(student=student, codes=32, code_dim=4, decoder_depth=1))
    quantiser = model.quantize.train()
    quantiser(quantiser.embedding.weight[:3])
    assert quantiser.used(400) == 3 / 32
    quantiser.update(YES)
    quantiser(quantiser.embedding.weight[5:6])
    assert quantiser.used(400) == 4 / 32
    TrainTokenizer().begin_epoch(model)
    assert quantiser.used(400) == 1 / 32
