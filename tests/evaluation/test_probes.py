"""k-NN and linear probe against independent computations."""

import sys

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from eva_fast.evaluation import knn_accuracy, linear_accuracy


def clusters(n, classes=4, width=12, spread=1.0, seed=0):
    """Overlapping clusters around fixed centres, with an offset that all share."""
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n,), generator=g)
    noise = torch.randn(n, width, generator=g)
    return 5.0 + centres[labels] + spread * noise, labels


def knn_by_loops(train, train_labels, val, val_labels, k=5, temperature=0.07):
    train, val = train.numpy().astype(np.float64), val.numpy().astype(np.float64)
    mean = train.mean(0)
    right = 0
    for row, wanted in zip(val - mean, val_labels.tolist()):
        cosines = [
            row @ other / np.linalg.norm(row) / np.linalg.norm(other) for other in train - mean
        ]
        votes = {}
        for i in np.argsort(cosines)[::-1][:k]:
            label = int(train_labels[i])
            votes[label] = votes.get(label, 0.0) + np.exp(cosines[i] / temperature)
        right += max(votes, key=votes.get) == wanted
    return 100 * right / len(val)


@pytest.mark.parametrize("spread", [0.3, 1.5, 4.0])
def test_knn_is_the_weighted_vote(spread):
    data = (*clusters(200, spread=spread), *clusters(80, spread=spread, seed=1))
    assert knn_accuracy(*data) == pytest.approx(knn_by_loops(*data))


def test_one_close_neighbour_outweighs_four_far_ones():
    angles = torch.tensor([0.02, 0.9, 0.95, 1.0, 1.05])
    points = torch.stack([angles.cos(), angles.sin()], 1)
    labels = torch.tensor([0, 1, 1, 1, 1])
    train = torch.cat([points, -points])  # mean zero, so that removing it changes nothing
    train_labels = torch.cat([labels, torch.full((5,), 2)])
    asked = torch.tensor([[1.0, 0.0]])
    assert knn_accuracy(train, train_labels, asked, torch.tensor([0])) == 100


def test_knn_with_fewer_images_than_neighbours():
    train = torch.eye(3)
    assert knn_accuracy(train, torch.arange(3), train, torch.arange(3)) == 100


def test_linear_is_sklearns_on_standardised_features():
    x, y = clusters(300, spread=2.0)
    x[:, 3] *= 100
    asked, wanted = clusters(120, spread=2.0, seed=1)
    asked[:, 3] *= 100
    expected = make_pipeline(StandardScaler(), LogisticRegression(C=0.02, max_iter=1000))
    expected.fit(x.numpy(), y.numpy())
    got = linear_accuracy(x, y, asked, wanted)
    assert got == pytest.approx(100 * expected.score(asked.numpy(), wanted.numpy()), abs=1.0)


def test_constant_features_do_no_harm():
    x, y = clusters(100, spread=0.2)
    x[:, 0] = 7.0
    assert linear_accuracy(x, y, x, y) > 95 and knn_accuracy(x, y, x, y) > 95


def test_without_sklearn_the_linear_probe_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    x, y = clusters(20)
    with pytest.raises(ValueError, match=r"eva-fast\[eval\]"):
        linear_accuracy(x, y, x, y)
    assert knn_accuracy(x, y, x, y) >= 0
