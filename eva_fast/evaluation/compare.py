"""Features beside each other: every probe on every extractor's features of one data set's images."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from eva_fast.data import Source
from eva_fast.data.decode.limits import MAX_MEGAPIXELS
from eva_fast.evaluation.features import Bands, Extractor, extract
from eva_fast.evaluation.probes import PROBES
from eva_fast.evaluation.result import Comparison, Scores
from eva_fast.evaluation.splits import Labels, labelled, split
from eva_fast.evaluation.verdict import binomial_error


def compare(
    extractors: Mapping[str, Extractor],
    sources: Sequence[Source],
    labels: list[Labels] | None,
    data: Any,
    probes: Sequence[str],
    *,
    size: int,
    device: torch.device,
    batch_size: int = 64,
    max_megapixels: float = MAX_MEGAPIXELS,
    bands: Bands | None = None,
) -> Comparison:
    """A row of scores for each extractor, in order.

    Args:
        sources, labels: of `open_labelled` and `known_labels`.
        data: how the data is named in messages.
        size: side of the images in pixels.
        bands: (mean, std) of images with other than three channels.
    """
    numbers = [list(known) for known in labels] if labels else [range(len(s)) for s in sources]
    found = [
        extract(source, extractors, size, batch_size, device, some, max_megapixels, bands)
        for source, some in zip(sources, numbers)
    ]
    if labels is None:
        labels = [labelled(part.numbers, part.labels) for part in found]
    train, val = split(labels, data)
    fit, fit_labels = found[0].of(train)
    ask, ask_labels = found[-1].of(val)
    rows = []
    for name in extractors:
        accuracy = {p: PROBES[p](fit[name], fit_labels, ask[name], ask_labels) for p in probes}
        error = {p: binomial_error(value, len(ask_labels)) for p, value in accuracy.items()}
        dim = fit[name].shape[1]
        rows.append(Scores(features=name, dim=dim, accuracy=accuracy, error=error))
    largest = Counter(fit_labels.tolist()).most_common(1)[0][0]
    return Comparison(
        classes=tuple(train.classes),
        train=len(fit_labels),
        val=len(ask_labels),
        majority=100 * float((ask_labels == largest).float().mean()),
        rows=tuple(rows),
    )
