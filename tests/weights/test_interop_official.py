"""The official code's own outputs, with its weights through our files and other libraries' models.

`eva_micro.safetensors` holds parameters, images and features of the official code.
"""

import pytest
import torch
from safetensors.torch import load_file

from eva_fast import export, weights
from eva_fast.errors import UsageError
from eva_fast.evaluation.students import load_student
from eva_fast.model import create_model
from eva_fast.weights import naming
from tests.weights.networks import close, same, student

timm = pytest.importorskip("timm")


OUT = {"timm": "x.pth", "hf": "folder", "hf-vit": "folder"}


@pytest.fixture
def official(eva_micro):
    """(state dict, images, features of all tokens, sizes) of the official code; its mask for others."""
    tensors, meta = eva_micro
    state = {k.removeprefix("param."): v for k, v in tensors.items() if k.startswith("param.")}
    mask = tensors["mask"].bool()[:, :, None]

    def masked(model):
        """Another library's model with the official code's mask behind its patch embedding."""
        embed = getattr(model, "patch_embed", None) or model.embeddings.patch_embeddings
        embed.register_forward_hook(
            lambda _, given, out: torch.where(mask, state["mask_token"], out)
        )
        return model

    sizes = weights.infer_sizes(state, meta)
    return state, tensors["image"], tensors["features"], sizes, masked


def checkpoint(path, state, sizes, form):
    """A file as the official code, DeepSpeed or we write it."""
    if form == "safetensors":
        return weights.write(path / "x.safetensors", state, {"num_heads": str(sizes.num_heads)})
    (path / "config.yaml").write_text(
        f"model: eva_ti_patch{sizes.patch_size}_{sizes.img_size}\n"
        f"embed_dim: {sizes.embed_dim}\nnum_heads: {sizes.num_heads}\n"
    )
    return weights.write_torch(path / "x.pt", {form: state, "epoch": 3})


@pytest.mark.parametrize("form", ["safetensors", "model", "module"])
@pytest.mark.parametrize("format", OUT)
@torch.no_grad()
def test_its_features_come_out_of_other_libraries(tmp_path, official, form, format):
    state, images, features, sizes, masked = official
    path = checkpoint(tmp_path, state, sizes, form)
    written = export(path, tmp_path / OUT[format], format=format)
    space = {}
    exec(written.snippet, space)
    model = masked(space["model"])
    found = (
        model(images).last_hidden_state if format == "hf-vit" else model.forward_features(images)
    )
    close(found, features)


def test_through_timm_and_back(tmp_path, official):
    """timm loads the official file by its own conversion, saves under its names, and the numbers under
    official names are the official ones, to the bit."""
    state, images, features, sizes, masked = official
    weights.write(tmp_path / "official.safetensors", state)
    theirs = timm.create_model(
        "eva_giant_patch14_224", img_size=sizes.img_size, patch_size=sizes.patch_size,
        embed_dim=sizes.embed_dim, depth=sizes.depth, num_heads=sizes.num_heads,
        mlp_ratio=sizes.mlp_hidden / sizes.embed_dim, num_classes=0, pretrained=True,
        pretrained_cfg_overlay=dict(file=str(tmp_path / "official.safetensors")),
    ).eval()  # fmt: skip
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    back, _ = weights.read_student(tmp_path / "timm.pth")
    lost = ("mask_token", "lm_head.weight", "lm_head.bias")
    same(back, {name: value for name, value in state.items() if name not in lost})
    with torch.no_grad():
        close(theirs.fc_norm(masked(theirs).forward_features(images)), features)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_byte_for_byte(tmp_path, official, dtype):
    """Official naming in and out again: whatever the dtype held is exact in float32, and a second round
    gives the first one's file."""
    state, _, _, sizes, _ = official
    given = {name: value.to(dtype) for name, value in state.items()}
    path = checkpoint(tmp_path, given, sizes, "module")
    first = export(path, tmp_path / "first.safetensors").path
    same(load_file(first), {name: value.float() for name, value in given.items()})
    second = export(first, tmp_path / "second.safetensors").path
    assert second.read_bytes() == first.read_bytes()
    torch_file = export(first, tmp_path / "third.pt").path
    same(torch.load(torch_file, weights_only=True)["model"], load_file(first))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("form", ["model", "module"])
def test_the_numbers_own_dtype(tmp_path, official, dtype, form):
    """An official checkpoint, or DeepSpeed's, in and out again in the dtype it had: equal tensors, in
    both kinds of file."""
    state, _, _, sizes, _ = official
    given = {name: value.to(getattr(torch, dtype)) for name, value in state.items()}
    path = checkpoint(tmp_path, given, sizes, form)
    out = export(path, tmp_path / "out.pt", dtype=dtype).path
    found = torch.load(out, weights_only=True)["model"]
    assert {value.dtype for value in found.values()} == {getattr(torch, dtype)}
    same(found, given)
    same(load_file(export(out, tmp_path / "out.safetensors", dtype=dtype).path), given)


def test_dtypes_that_cannot_be(tmp_path, official):
    state, _, _, sizes, _ = official
    state = {**state, "lm_head.bias": state["lm_head.bias"] + 1e5}
    path = checkpoint(tmp_path, state, sizes, "model")
    for options, message in (
        (dict(dtype="float16"), "lm_head.bias has numbers that float16 cannot hold"),
        (dict(dtype="half"), "unknown dtype 'half'; possible are float32, float16, bfloat16"),
        (dict(dtype="float16", format="timm"), "for other libraries timm is in float32"),
    ):
        with pytest.raises(UsageError, match=message):
            export(path, tmp_path / "out.safetensors", **options)


@pytest.mark.parametrize(
    "name, names, options",
    [
        ("eva_giant_patch14_224", naming.timm.EVA, dict(global_pool="avg", use_fc_norm=False)),
        ("eva_giant_patch14_224", naming.timm.EVA_POOLED, {}),
        # Of this size timm has its ViT, with one bias of query, key and value.
        ("eva_large_patch14_196", naming.timm.VIT, dict(global_pool="token")),
        ("eva_large_patch14_196", naming.timm.VIT_POOLED, {}),
    ],
)
def test_timms_published_sizes(name, names, options):
    """Names and shapes of the whole model, without its memory."""
    with torch.device("meta"):
        expected = timm.create_model(name, num_classes=0, **options).state_dict()
        written = names.write(create_model(name).state_dict())
    assert written.keys() == expected.keys()
    assert all(written[n].shape == expected[n].shape for n in expected)


def test_patches_of_14_become_16(tmp_path):
    """`--patch-size 16`, as timm does when it loads: the same model there, from either file."""
    ours = student(img_size=42, patch_size=14)
    weights.write_student(ours, tmp_path / "model.safetensors")
    written = export(
        tmp_path / "model.safetensors", tmp_path / "timm.safetensors",
        format="timm", img_size=64, patch_size=16,
    )  # fmt: skip
    space = {}
    exec(written.snippet, space)
    own = load_student(
        export(
            tmp_path / "model.safetensors", tmp_path / "own.safetensors",
            img_size=64, patch_size=16,
        ).path, torch.device("cpu"),
    )  # fmt: skip
    hub = weights.export(ours, tmp_path / "hf", "hf").path
    resized = timm.create_model(
        f"local-dir:{hub}", pretrained=True, img_size=64, patch_size=16
    ).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        close(space["model"].forward_features(images), own.forward_features(images))
        # timm's pseudo-inverse is of float32
        torch.testing.assert_close(space["model"](images), resized(images), atol=3e-5, rtol=1e-4)
