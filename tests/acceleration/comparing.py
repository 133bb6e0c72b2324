"""A network of another library and its accelerated copy, side by side."""

import copy

import torch

import eva_fast

FORWARD, GRADIENT = 1e-5, 1e-4


def randomised(model, seed=0):
    """The model with parameters away from what they start at: zeros and ones hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        spread = 0.15 if parameter.dim() > 1 else 0.3
        parameter.data.normal_(0, spread, generator=generator)
    for module in model.modules():
        if "Norm" in type(module).__name__ and getattr(module, "weight", None) is not None:
            module.weight.data += 1
    return model


def pair(model):
    """(the model, an accelerated copy), with the same random parameters."""
    randomised(model)
    return model, eva_fast.accelerate(copy.deepcopy(model))


def outputs_and_gradients(model, run, seed=1):
    """(output, {name: gradient}) of the sum of squares of `run(model)`, a Tensor."""
    torch.manual_seed(seed)
    model.zero_grad()
    out = run(model)
    weights = torch.linspace(0.5, 1.5, out.numel()).view_as(out)
    (out * weights).square().mean().backward()
    return out.detach(), {
        n: p.grad for n, p in model.named_parameters() if p.grad is not None and p.numel()
    }


def assert_same(plain, fused, run, seed=1):
    """The two agree in outputs and in all gradients; tolerances are of the largest value."""
    out, gradients = outputs_and_gradients(plain, run, seed)
    found, found_gradients = outputs_and_gradients(fused, run, seed)
    assert torch.isfinite(out).all() and out.abs().max() > 0
    assert (found - out).abs().max() <= FORWARD * out.abs().max()
    assert found_gradients.keys() == gradients.keys()
    scale = max(g.abs().max() for g in gradients.values())
    for name, gradient in gradients.items():
        largest = max(gradient.abs().max(), 1e-3 * scale)
        assert (found_gradients[name] - gradient).abs().max() <= GRADIENT * largest, name
