"""The masked autoencoder against the published code's outputs, and on other sizes against timm's modules
in the published formulation."""

import pytest
import torch
import torch.nn.functional as F

from bench.objectives.mae import TimmMae
from eva_fast.layers.inputs import IMAGENET_MEAN, IMAGENET_STD, normalise
from eva_fast.model import DecoderSizes, MaskedAutoencoder, ModelSizes, sizes_of
from eva_fast.model.mae import MaeEncoder
from eva_fast.planning.counter import Recorder
from eva_fast.planning.flash import FlashAttention
from tests.golden import FOLDER, mae, read
from tests.ops.helpers import masks

SIZES = {
    "odd": (
        dict(img_size=60, patch_size=12, embed_dim=176, depth=2, num_heads=2, mlp_hidden=704),
        dict(dim=72, depth=2, heads=3),
    ),
    "one block each": (
        dict(img_size=32, patch_size=16, embed_dim=60, depth=1, num_heads=5, mlp_hidden=240),
        dict(dim=20, depth=1, heads=1),
    ),
}


def pair(name, dtype=torch.float32, **options):
    """Ours and, in float64, timm's modules with the same random weights; sizes and a batch."""
    torch.manual_seed(0)
    sizes, decoder = SIZES[name]
    sizes, decoder = ModelSizes(**sizes, predict_dim=20), DecoderSizes(**decoder)
    ours = MaskedAutoencoder(sizes, decoder, **options)
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    theirs = TimmMae(sizes, decoder).double()
    theirs.load_state_dict(
        {k: v.double() for k, v in ours.official_state_dict().items()}, strict=True
    )
    images = torch.randint(256, (3, 3, sizes.img_size, sizes.img_size), dtype=torch.uint8)
    kept = max(1, sizes.num_patches // 4)
    visible = masks(3, sizes.num_patches, kept)
    flags = torch.ones(3, sizes.num_patches).scatter(1, visible.long(), 0)
    dropped = flags.nonzero()[:, 1].view(3, -1).int()
    return ours, theirs, (images, visible, dropped), torch.randn(dropped.numel(), 20)


def relative(a, b):
    return ((a.double() - b).norm() / b.norm().clamp_min(1e-12)).item()


def test_published_outputs(kernels):
    tensors, meta = read(FOLDER / "mae_micro.safetensors")
    here = torch.empty(0).device
    tensors = {name: tensor.to(here) for name, tensor in tensors.items()}
    # in the interpreter a forward takes ten seconds
    rows = list(mae.outputs(tensors, meta, "auto", whole=kernels != "triton"))
    assert rows and not [row for row in rows if not row.ok]


@pytest.mark.parametrize(("name", "statistics"), [("odd", "imagenet"), ("one block each", "clip")])
def test_other_sizes_against_timms_modules(name, statistics, kernels):
    pytest.importorskip("timm")
    if kernels == "triton" and name == "odd":
        pytest.skip("a minute in the interpreter, and the other case takes the same kernels")
    options = dict(statistics=statistics, kernels="auto")
    ours, theirs, (images, visible, dropped), target = pair(name, **options)
    pixels = normalise(images, torch.float32, ours.encoder.patch_embed.mean,
                       ours.encoder.patch_embed.std).double()  # fmt: skip
    expected = theirs(pixels, visible.long())
    rows = dropped.long()[..., None].expand(-1, -1, 20)
    wanted = expected.gather(1, rows).flatten(0, 1)
    assert relative(ours(images, visible, dropped), wanted) < 2e-5
    assert relative(ours(images, visible), expected) < 2e-5
    features = ours.encoder.forward_features(images)
    assert relative(features, theirs.forward_features(pixels)) < 2e-5
    loss = ours.loss(images, visible, dropped, target)
    reference = -F.cosine_similarity(wanted, target.double(), dim=1).mean()
    assert abs(loss.item() - reference.item()) < 2e-6
    loss.backward()
    reference.backward()
    found = dict(theirs.named_parameters())
    names = ours.official_names()
    for n, p in ours.named_parameters():
        assert relative(p.grad, found[names[n]].grad) < 2e-4, n


def test_bytes_are_normalised_by_the_statistics():
    ours, *_ = pair("odd", statistics="imagenet")
    images = torch.randint(256, (2, 3, 60, 60), dtype=torch.uint8)
    floats = normalise(images, torch.float32, IMAGENET_MEAN, IMAGENET_STD)
    found, expected = (ours.encoder.forward_features(x) for x in (images, floats))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_order_of_the_visible_patches_is_free():
    ours, _, (images, visible, dropped), target = pair("odd", kernels="auto")
    a = ours.loss(images, visible, dropped, target)
    b = ours.loss(images, visible.flip(1), dropped, target)
    assert abs(a.item() - b.item()) < 2e-6


@pytest.mark.parametrize("how", ["bfloat16", "checkpointed", "compiled"])
def test_the_same_otherwise(how):
    """In bfloat16 to its 8 bits; checkpointed or compiled to the bit."""
    plain, _, batch, target = pair("odd")
    dtype = torch.bfloat16 if how == "bfloat16" else torch.float32
    torch.manual_seed(0)
    other = MaskedAutoencoder(plain.sizes, DecoderSizes(dim=72, depth=2, heads=3),
                              compute_dtype=dtype)  # fmt: skip
    other.load_state_dict(plain.state_dict())
    run = other.loss
    if how == "checkpointed":
        other.set_grad_checkpointing(share=0.5)
    if how == "compiled":
        torch._dynamo.reset()
        run = torch.compile(lambda *a: other.loss(*a), fullgraph=True, backend="aot_eager")
    expected, found = plain.loss(*batch, target), run(*batch, target)
    expected.backward()
    found.backward()
    flat = [torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (other, plain)]
    if how == "bfloat16":
        assert abs(found.item() - expected.item()) < 5e-3
        assert (flat[0] - flat[1]).norm() < 0.05 * flat[1].norm()
    else:
        assert torch.equal(found, expected)
        torch.testing.assert_close(*flat, rtol=1e-6, atol=1e-8)


def test_parameters_of_eva_l():
    """The published code's count at a teacher's width of 1024; positions do not train."""
    with torch.device("meta"):
        network = MaskedAutoencoder(sizes_of("eva_l_patch14_224", predict_dim=1024), DecoderSizes())
    assert sum(p.numel() for p in network.parameters()) == 316_576_768
    assert "pos_embed" in network.encoder.state_dict()


def test_forward_of_eva_l_is_cheap():
    """Counted: at most 47 GFLOP an image, of which the encoder's 64 visible patches are the most."""
    with torch.device("meta"):
        network = MaskedAutoencoder(
            sizes_of("eva_l_patch14_224", predict_dim=1024), DecoderSizes(), kernels="triton"
        )
        batch = [torch.empty(2, n, dtype=torch.int32) for n in (64, 192)]
        images = torch.empty(2, 3, 224, 224, dtype=torch.uint8)
        target = torch.empty(2 * 192, 1024)
    recorder = Recorder()
    with FlashAttention("cuda"), recorder, torch.no_grad():
        network.loss(images, *batch, target)
    assert 40e9 < sum(op.flops for op in recorder.operators) / 2 <= 47e9


def test_initial_values():
    torch.manual_seed(0)
    sizes = ModelSizes(img_size=48, patch_size=12, embed_dim=96, depth=2, num_heads=3,
                       mlp_hidden=384, predict_dim=48)  # fmt: skip
    network = MaskedAutoencoder(sizes, DecoderSizes(dim=48, depth=1, heads=2))
    for name, p in network.named_parameters():
        if name.endswith("_token"):
            assert 0.012 < p.std() < 0.028
        elif "patch_embed.proj.bias" in name:
            assert 0 < p.abs().max() <= (3 * 144) ** -0.5
        elif p.ndim == 1:
            assert (p == (1.0 if "norm" in name and name.endswith("weight") else 0.0)).all()
        else:
            out, width = p.flatten(1).shape
            bound = (6 / (out + width)) ** 0.5
            assert 0.95 * bound < p.abs().max() <= bound, name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DecoderSizes(dim=510), "decoder_dim 510"),
        (lambda: DecoderSizes(dim=48, heads=5), "decoder_heads 5"),
        (lambda: DecoderSizes(depth=0), "decoder_depth 0"),
        (lambda: MaeEncoder(sizes_of("eva_ti_patch8_32", embed_dim=30, num_heads=3)), "embed_dim 30"),
    ],
)  # fmt: skip
def test_sizes_that_cannot_be_built(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_wrong_shapes():
    ours, _, (images, visible, dropped), target = pair("odd")
    with pytest.raises(ValueError, match=r"target has shape \(57, 19\), the dropped patches need"):
        ours.loss(images, visible, dropped, target[:, :19])
    with pytest.raises(ValueError, match=r"images must be \[B,3,60,60\]"):
        ours.encoder.forward_features(images[..., 1:])
