"""What `accelerate` changes, what it leaves, and what it refuses."""

import copy

import pytest
import timm
import torch
import torch.distributed as dist
from timm.models.vision_transformer import Block
from torch import nn

import eva_fast
from eva_fast.errors import UsageError
from eva_fast.ops import choose
from tests.acceleration.comparing import assert_same, pair, randomised

SMALL = {"depth": 2, "embed_dim": 64, "num_heads": 2, "img_size": 32, "num_classes": 5}


def network(**options):
    return timm.create_model("vit_base_patch16_224", **{**SMALL, **options})


def images(batch=2):
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def ops_of(run):
    """Names of the project's ops that a call runs."""
    names = []

    def note(op, case, function, *arguments):
        names.append(op.name)
        return function(*arguments)

    with choose.noting(note), torch.no_grad():
        run()
    return names


def test_the_line_of_the_documentation():
    plain = timm.create_model("eva_large_patch14_196", **{**SMALL, "img_size": 28})
    model = eva_fast.accelerate(plain)
    assert model is plain
    assert "attention and MLP fused" in str(model.eva_fast_report)
    assert {"packed_attention", "bias_gelu", "add_layer_norm"} <= set(
        ops_of(lambda: model(torch.randn(1, 3, 28, 28)))
    )


def test_twice_is_as_once():
    _, fused = pair(network())
    classes = [type(m) for m in fused.modules()]
    report = str(fused.eva_fast_report)
    assert eva_fast.accelerate(fused) is fused
    assert [type(m) for m in fused.modules()] == classes
    assert str(fused.eva_fast_report) == report


def test_the_random_state_is_left_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    model = network()
    torch.manual_seed(7)
    eva_fast.accelerate(model)
    assert torch.equal(torch.rand(3), expected)


def test_a_block_stays_one_of_its_library():
    plain, fused = pair(network())
    block = fused.blocks[0]
    assert isinstance(block, Block)
    assert type(block).__name__ == "Block"
    assert repr(fused) == repr(plain)
    assert [n for n, _ in fused.named_modules()] == [n for n, _ in plain.named_modules()]


def test_hooks_on_blocks_see_tokens():
    plain, fused = pair(network())
    seen = {plain: [], fused: []}
    for model, outputs in seen.items():
        for block in model.blocks:
            block.register_forward_hook(lambda m, a, out, to=outputs: to.append((a[0], out)))
        model(images())
    assert "packed_attention" in ops_of(lambda: fused(images()))
    for theirs, ours in zip(seen[plain], seen[fused][:2], strict=True):
        for one, other in zip(theirs, ours, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("place", ["attn", "attn.qkv", "norm1", "mlp.act", "mlp", "drop_path1"])
def test_hooks_inside_a_block_see_what_they_would(place):
    plain, fused = pair(network(drop_path_rate=0.3))
    plain.train(), fused.train()
    seen = {plain: [], fused: []}
    for model, outputs in seen.items():
        model.blocks[1].get_submodule(place).register_forward_hook(
            lambda m, a, out, to=outputs: to.append(out.detach())
        )
    assert_same(plain, fused, lambda m: m(images()))
    assert len(seen[plain]) == len(seen[fused]) == 1
    torch.testing.assert_close(seen[fused][0], seen[plain][0], rtol=1e-5, atol=1e-5)


class Adapter(nn.Linear):
    """As libraries of adapters put them in place of a Linear, whose `weight` they still have."""

    def forward(self, x):
        return super().forward(x) + 0.1 * x.sum(-1, keepdim=True)


@pytest.mark.parametrize(("part", "name"), [("attn", "qkv"), ("attn", "proj"), ("mlp", "fc2")])
def test_an_adapter_put_in_afterwards_is_honoured(part, name):
    plain, fused = pair(network())
    for model in (plain, fused):
        owner = model.blocks[0].get_submodule(part)
        old = getattr(owner, name)
        new = Adapter(old.in_features, old.out_features)
        new.load_state_dict(old.state_dict())
        setattr(owner, name, new)
    assert_same(plain, fused, lambda m: m(images()))
    eva_fast.accelerate(fused)
    assert f"left: {'proj' if name == 'proj' else ''}" in str(fused.eva_fast_report)


def test_functional_calls():
    plain, fused = pair(network())
    state = {k: v.detach() * 1.1 for k, v in plain.state_dict().items()}
    with torch.no_grad():
        out, found = (torch.func.functional_call(m, state, images()) for m in (plain, fused))
    torch.testing.assert_close(found, out, rtol=1e-5, atol=1e-5)

    def loss(parameters, model):
        return torch.func.functional_call(model, parameters, images()).square().sum()

    theirs, ours = (torch.func.grad(loss)(state, m) for m in (plain, fused))
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-4)


def test_a_trace_is_the_library_s():
    plain, fused = pair(network().eval())
    traced = torch.jit.trace(fused, images())
    torch.testing.assert_close(traced(images()), plain(images()), rtol=1e-5, atol=1e-5)


def test_networks_that_hold_a_vision_transformer():
    inner = network()
    model = nn.ModuleDict({"tower": inner, "head": nn.Linear(5, 2)})
    assert eva_fast.accelerate(model) is model
    assert list(model.eva_fast_report.blocks) == ["tower.blocks.0", "tower.blocks.1"]


def test_its_own_networks_are_as_they_should_be():
    model = eva_fast.create_model(
        img_size=56, patch_size=14, embed_dim=64, depth=2, num_heads=4, mlp_hidden=96, predict_dim=8
    )
    assert eva_fast.accelerate(model) is model
    assert len(model.eva_fast_report.blocks) == 2


class Changed(Block):
    """Somebody's variant."""

    def forward(self, x):
        return super().forward(x) * 2


def refused(model, match):
    classes = [type(m) for m in model.modules()]
    with pytest.raises(UsageError, match=match):
        eva_fast.accelerate(model)
    assert [type(m) for m in model.modules()] == classes
    assert not hasattr(model, "eva_fast_report")


def test_refuses_what_is_no_network():
    with pytest.raises(UsageError, match=r"takes a network .*, not a str"):
        eva_fast.accelerate("vit_base_patch16_224")


def test_refuses_networks_without_blocks():
    refused(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), "Sequential has no block")


def test_refuses_a_network_with_one_block_of_another_kind():
    model = network()
    model.blocks[1] = Changed(64, 2)
    refused(
        model, r"'blocks.1' \(tests.acceleration.test_network.Changed\).*no block that is known"
    )


def test_refuses_a_block_with_more_in_it():
    model = network()
    model.blocks[1].adapter = nn.Linear(64, 64)
    refused(model, r"block 'blocks.1' .*not built as .* it has adapter")


def test_refuses_a_library_that_computes_something_else(monkeypatch):
    own = Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, x, **options: own(self, x, **options) * 1.01)
    refused(network(), r"'blocks.0' .* computes something else")


def test_refuses_parameters_that_are_computed():
    model = network()
    proj = model.blocks[0].attn.proj
    weight = proj.weight
    del proj.weight
    proj.weight = weight * 2
    refused(model, "'blocks.0' .* cannot be tried out on a copy")


@pytest.fixture
def alone(tmp_path):
    """A process group of this process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_refuses_what_was_scripted_or_quantised():
    traced = torch.jit.trace(network().eval(), images())
    refused(traced, "is TorchScript, whose code is fixed")
    quantised = torch.ao.quantization.quantize_dynamic(network(), {nn.Linear}, dtype=torch.qint8)
    refused(
        quantised, r"'blocks\.0\.attn\.qkv' of the network is quantised \(torch\.ao\.nn\.quantized"
    )
    packed = network()
    packed.blocks[1].mlp.fc1.weight = nn.Parameter(
        torch.zeros(256, 64, dtype=torch.int8), requires_grad=False
    )
    refused(packed, "'blocks.1.mlp.fc1' of the network is quantised: its 'weight' is torch.int8")


def test_refuses_shards(alone):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = network()
    fully_shard(model.blocks[1], mesh=init_device_mesh("cpu", (1,)))
    refused(model, "'blocks.1' of the network is sharded: call accelerate before FSDP")


def test_what_is_around_a_network_to_share_gradients_stays(alone):
    plain = randomised(network())
    fused = copy.deepcopy(plain)
    around = nn.parallel.DistributedDataParallel(fused)
    assert eva_fast.accelerate(around) is around and "fused" in str(around.eva_fast_report)
    losses = [model(images()).square().mean() for model in (plain, around)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
    for loss in losses:
        loss.backward()
    for (name, one), other in zip(plain.named_parameters(), fused.parameters()):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_refuses_compiled_networks():
    refused(torch.compile(nn.Linear(2, 2)), "call accelerate before torch.compile")
    refused(torch.compile(network()), "the network is compiled: call accelerate before")
    refused(nn.Sequential(torch.compile(network())), "'0' of the network is compiled")
    model = network()
    model.blocks[0].compile(backend="eager")
    refused(model, "'blocks.0' .* is compiled: call accelerate before")


def test_names_are_lazy():
    assert "accelerate" in eva_fast.__all__
    assert eva_fast.accelerate.__module__ == "eva_fast.acceleration.network"
