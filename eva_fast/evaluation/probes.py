"""Probes: how well classes can be read off frozen features.

Both take features [n,D] of training images with integer labels, and of validation images, and give
the accuracy on the latter in percent.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from eva_fast.errors import UsageError

NEIGHBOURS, TEMPERATURE = 5, 0.07
# Strong regularisation: few images, many features. The same for all features that are compared.
INVERSE_REGULARISATION, ITERATIONS = 0.02, 1000


def knn_accuracy(train: Tensor, train_labels: Tensor, val: Tensor, val_labels: Tensor) -> float:
    """Weighted k-nearest-neighbour vote by cosine similarity, the training mean removed first.

    Each of the k=5 nearest training images votes for its class with exp(similarity / 0.07), as in
    Wu et al. 2018 and DINO (Caron et al. 2021).
    """
    mean = train.float().mean(0)
    known = F.normalize(train.float() - mean, dim=1)
    classes = int(train_labels.max()) + 1
    right = 0
    for asked, wanted in zip(val.split(1024), val_labels.split(1024)):
        similarity = F.normalize(asked.float() - mean, dim=1) @ known.T
        near, index = similarity.topk(min(NEIGHBOURS, len(known)), dim=1)
        votes = torch.zeros(len(asked), classes, device=train.device)
        votes.scatter_add_(1, train_labels[index], (near / TEMPERATURE).exp())
        right += int((votes.argmax(1) == wanted).sum())
    return 100 * right / len(val_labels)


def linear_accuracy(train: Tensor, train_labels: Tensor, val: Tensor, val_labels: Tensor) -> float:
    """Multinomial logistic regression (scikit-learn, L2, C=0.02) on features standardised with the
    training images' mean and deviation. ValueError where scikit-learn is not installed."""
    require_sklearn()
    from sklearn.linear_model import LogisticRegression

    mean, deviation = train.float().mean(0), train.float().std(0, correction=0)
    deviation = torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation))
    x, y = ((train - mean) / deviation).float().cpu().numpy(), train_labels.cpu().numpy()
    probe = LogisticRegression(C=INVERSE_REGULARISATION, max_iter=ITERATIONS).fit(x, y)
    asked = ((val - mean) / deviation).float().cpu().numpy()
    return 100 * float(probe.score(asked, val_labels.cpu().numpy()))


def require_sklearn() -> None:
    """ValueError that says what to install, where scikit-learn is missing."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise UsageError(
            "the linear probe needs scikit-learn: pip install 'eva-fast[eval]', or use only knn"
        ) from None


PROBES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], float]] = {
    "knn": knn_accuracy,
    "linear": linear_accuracy,
}
