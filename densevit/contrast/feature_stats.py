"""Statistics of features that show collapse long before an accuracy does."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Features have collapsed if `effective_rank` − 1 is below this share of min(R, D) − 1.
COLLAPSED_SHARE = 0.05
_UNIFORMITY_ROWS = 1024


def effective_rank(features: Tensor) -> float:
    """Return RankMe of features (R, E): exp of the entropy of their singular values.

    In [1, min(R, E)]; NaN if a feature is not finite. The singular values σ are those of the
    features without centering, and p = σ/Σσ + 1e-7. Features that share one large component
    therefore have a rank near 1; the rank of a covariance would not show that component.
    Garrido et al., "RankMe" (2023), equation 1.
    """
    if not features.isfinite().all():
        return math.nan
    rows = features.double()
    if len(rows) > rows.shape[1]:
        rows = rows.T
    gram = rows @ rows.T  # (min(R, E),) twice: its eigenvalues are σ²
    spectrum = torch.linalg.eigvalsh(gram.cpu()).clamp_min(0).sqrt()
    share = spectrum / spectrum.sum().clamp_min(torch.finfo(spectrum.dtype).tiny) + 1e-7
    return float((-(share * share.log()).sum()).exp())


def feature_std(features: Tensor) -> float:
    """Return √D times the standard deviation of unit features (R, D), averaged over dimensions.

    1 if features are spread evenly over the sphere, 0 if all are equal. Chen and He, "Exploring
    Simple Siamese Representation Learning" (2021), section 4.1, which has no factor √D.
    """
    return float(features.std(dim=0, correction=0).mean() * math.sqrt(features.shape[1]))


def alignment(queries: Tensor, positives: Tensor) -> float:
    """Return the mean squared distance of unit features (R, D) to their positives, in [0, 4].

    Wang and Isola, "Understanding Contrastive Representation Learning through Alignment and
    Uniformity on the Hypersphere" (2020), with α = 2.
    """
    return float((queries - positives).square().sum(dim=1).mean())


def uniformity(features: Tensor) -> float:
    """Return the log of the mean of exp(−2·distance²) over pairs of unit features (R, D).

    0 if all are equal, about −4 if they are spread evenly over a sphere of many dimensions.
    Wang and Isola (2020), with t = 2. Takes at most 1024 features, evenly spaced over the rows.
    """
    rows = features[:: -(-len(features) // _UNIFORMITY_ROWS)]
    distances = torch.pdist(rows.float().cpu())
    return float(distances.square().mul(-2).exp().mean().log())


def collapsed(features: Tensor) -> bool:
    """Return True if `effective_rank` − 1 of features (R, D) is below 5 % of its maximum.

    The maximum is min(R, D) − 1; the 1 is the rank of features that are all equal.
    """
    return effective_rank(features) - 1 < COLLAPSED_SHARE * (min(features.shape) - 1)
