"""Folding batch norms changes the speed of a teacher, not its features."""

import pytest
import torch
from torch import nn
from torch.fx import symbolic_trace
from torchvision.models import get_model
from torchvision.models.feature_extraction import create_feature_extractor

from eva_fast.teachers.fold import fold_batch_norms


def lively(model):
    """Running statistics and affine values as after training, not the neutral initial ones."""
    g = torch.Generator().manual_seed(0)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.3, generator=g)
            norm.running_var.uniform_(0.5, 2, generator=g)
            nn.init.uniform_(norm.weight, 0.5, 1.5, generator=g)
            nn.init.normal_(norm.bias, 0, 0.3, generator=g)
    return model.eval().double()


def count(network, kind):
    return sum(isinstance(m, kind) for m in network.modules())


@pytest.mark.parametrize(
    "name, node",
    [("mobilenet_v2", "features"), ("resnet18", "layer4"), ("shufflenet_v2_x0_5", "conv5")],
)
def test_features_stay_and_norms_go(name, node):
    torch.manual_seed(0)
    network = create_feature_extractor(lively(get_model(name, weights=None)), {node: "features"})
    network = network.eval()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        before = network(images)["features"]
        folded = fold_batch_norms(network)
        after = folded(images)["features"]
    torch.testing.assert_close(after, before, atol=1e-9, rtol=1e-9)
    assert count(folded, nn.BatchNorm2d) == 0 and before.std() > 1e-3


class Awkward(nn.Module):
    """A norm without a convolution before it, one whose convolution is used elsewhere too, and a
    convolution that is called twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.again, self.norm_again = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.norm_third = nn.BatchNorm2d(8)

    def forward(self, x):
        y = self.conv(self.first(x))
        y = self.norm(y) + y
        return self.norm_third(self.again(self.norm_again(self.again(y))))


def test_norms_that_cannot_go_stay():
    network = symbolic_trace(lively(Awkward()))
    images = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    before = network(images)
    torch.testing.assert_close(fold_batch_norms(network)(images), before, atol=1e-12, rtol=0)
    assert count(network, nn.BatchNorm2d) == 4
