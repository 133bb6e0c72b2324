"""Hugging Face's vision models, accelerated, against themselves."""

import copy

import pytest
import torch
import transformers

import eva_fast
from tests.acceleration.comparing import assert_same, pair, randomised
from tests.acceleration.test_network import ops_of

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
ALL = "attention and MLP fused"
MODELS = {
    "vit": (transformers.ViTModel, transformers.ViTConfig, {}, ALL),
    "vit, no biases": (transformers.ViTModel, transformers.ViTConfig, {"qkv_bias": False}, ALL),
    "deit": (transformers.DeiTModel, transformers.DeiTConfig, {}, ALL),
    "clip": (transformers.CLIPVisionModel, transformers.CLIPVisionConfig, {}, ALL),
    "siglip": (transformers.SiglipVisionModel, transformers.SiglipVisionConfig, {}, ALL),
    "dinov2": (
        transformers.Dinov2Model,
        transformers.Dinov2Config,
        {"drop_path_rate": 0.4, "mlp_ratio": 2},
        ALL,
    ),
    "dinov2, SwiGLU": (
        transformers.Dinov2Model,
        transformers.Dinov2Config,
        {"use_swiglu_ffn": True},
        "attention fused; MLP left: the MLP is a Dinov2SwiGLUFFN",
    ),
    "dinov2 with registers": (
        transformers.Dinov2WithRegistersModel,
        transformers.Dinov2WithRegistersConfig,
        {"drop_path_rate": 0.4},
        ALL,
    ),
    "dinov3": (transformers.DINOv3ViTModel, transformers.DINOv3ViTConfig, {}, ALL),
    "dinov3, a bias of k": (
        transformers.DINOv3ViTModel,
        transformers.DINOv3ViTConfig,
        {"key_bias": True},
        "MLP fused; attention left: rotary positions turn a bias of k",
    ),
}


def network(kind, **options):
    model, config, own, _ = MODELS[kind]
    torch.manual_seed(0)
    return model(config(**{**SMALL, **own, **options}))


def images(side=32):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def state(model, **options):
    return model(pixel_values=images(), **options).last_hidden_state


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", MODELS)
def test_outputs_and_gradients(kind, attention):
    plain, fused = pair(network(kind, attn_implementation=attention))
    assert MODELS[kind][-1] in str(fused.eva_fast_report)
    for training in (False, True):
        plain.train(training), fused.train(training)
        assert_same(plain, fused, state)


def test_a_training_step():
    plain, fused = pair(network("dinov2"))
    for model in (plain, fused):
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        torch.manual_seed(0)
        for _ in range(3):
            optimizer.zero_grad()
            state(model).square().mean().backward()
            optimizer.step()
    for (name, one), other in zip(plain.named_parameters(), fused.parameters()):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5, msg=name)
        assert (one.grad is None) == (other.grad is None), name


def test_hidden_states_and_attention_weights():
    plain, fused = pair(network("vit", attn_implementation="eager").eval())
    for asked in ({"output_hidden_states": True}, {"output_attentions": True}):
        out, found = (m(pixel_values=images(), **asked) for m in (plain, fused))
        for one, other in zip(
            (out.hidden_states or ()) + (out.attentions or ()),
            (found.hidden_states or ()) + (found.attentions or ()),
            strict=True,
        ):
            torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)
    assert "packed_attention" in ops_of(lambda: state(fused))
    assert "packed_attention" not in ops_of(lambda: state(fused, output_attentions=True))
    assert "packed_attention" in ops_of(lambda: state(fused, output_hidden_states=True))


def test_gradient_checkpointing():
    plain, fused = pair(network("dinov2"))
    plain.train(), fused.train()
    fused.gradient_checkpointing_enable()
    layer, count = fused.encoder.layer[0], []
    own = layer._gradient_checkpointing_func
    layer._gradient_checkpointing_func = lambda *a: count.append(1) or own(*a)
    assert_same(plain, fused, state)
    assert count == [1]


def test_dropout_in_training():
    plain, fused = pair(network("vit", hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.1))
    assert "while training left: dropout of 0.2" in str(fused.eva_fast_report)
    plain.train(), fused.train()
    assert_same(plain, fused, state)


def test_other_sizes_of_images():
    plain, fused = pair(network("clip"))
    assert_same(
        plain,
        fused,
        lambda m: m(pixel_values=images(48), interpolate_pos_encoding=True).last_hidden_state,
    )


def test_autocast():
    plain, fused = pair(network("vit").eval())
    with torch.no_grad():
        exact = state(plain)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out, found = state(plain), state(fused)
    assert found.dtype == out.dtype
    assert (found - exact).abs().max() <= 2 * (out - exact).abs().max()


def test_both_towers_of_clip():
    config = transformers.CLIPConfig(
        vision_config=SMALL,
        text_config={
            **{k: v for k, v in SMALL.items() if "size" not in k or k in ("hidden_size",)},
            "intermediate_size": 48,
            "vocab_size": 50,
            "max_position_embeddings": 6,
        },
        projection_dim=16,
    )
    plain, fused = pair(transformers.CLIPModel(config))
    report = {name: str(block) for name, block in fused.eva_fast_report.blocks.items()}
    assert {ALL, "MLP fused; attention left: words have a mask"} == set(report.values())
    words = torch.randint(0, 50, (2, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])

    def logits(model):
        return model(input_ids=words, attention_mask=mask, pixel_values=images()).logits_per_image

    assert_same(plain, fused, logits)


def test_compiled_in_one_graph():
    plain, fused = pair(network("vit", num_hidden_layers=1).eval())
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(state(compiled), state(plain), rtol=1e-5, atol=1e-5)


def test_saving_and_loading(tmp_path):
    _, fused = pair(network("dinov2").eval())
    fused.save_pretrained(tmp_path)
    other = transformers.Dinov2Model.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(state(fused), state(other), rtol=1e-5, atol=1e-5)
    reloaded = eva_fast.accelerate(randomised(copy.deepcopy(other), seed=3))
    reloaded.load_state_dict(fused.state_dict(), strict=True)
    assert torch.equal(state(reloaded), state(fused))
