"""Numbers that tell whether features are worth anything, long before an accuracy does."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Features have collapsed when, of the directions that their number and length would allow beside
# the first, they use less than this share.
COLLAPSED_SHARE = 0.05
_UNIFORMITY_ROWS = 1024


def effective_rank(features: Tensor) -> float:
    """RankMe of features (R, E): exp of the entropy of their singular values, in [1, min(R, E)].

    NaN if a feature is not finite.

    The singular values σ are those of the features as they are, not centred, and p = σ/Σσ + 1e-7:
    features that all share one large component therefore have a rank near 1, as they should.
    Garrido et al., "RankMe" (2023), equation 1; not the rank of a covariance, which is blind to
    such a component.
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
    """Standard deviation of unit features (R, D) over the rows, mean over dimensions, times √D.

    1 for features spread evenly over the sphere, 0 when all are the same. Chen and He,
    "Exploring Simple Siamese Representation Learning" (2021), section 4.1, without its factor √D.
    """
    return float(features.std(dim=0, correction=0).mean() * math.sqrt(features.shape[1]))


def alignment(queries: Tensor, positives: Tensor) -> float:
    """Mean squared distance of unit features (R, D) to their positives, in [0, 4]; 0 is aligned.

    Wang and Isola, "Understanding Contrastive Representation Learning through Alignment and
    Uniformity on the Hypersphere" (2020), with α = 2.
    """
    return float((queries - positives).square().sum(dim=1).mean())


def uniformity(features: Tensor) -> float:
    """Log of the mean of exp(−2·distance²) over pairs of unit features (R, D).

    0 when all are equal, about −4 when they are spread evenly over a sphere of many dimensions.
    Wang and Isola (2020), with t = 2; of more than 1024 features, at most as many at equal steps.
    """
    rows = features[:: -(-len(features) // _UNIFORMITY_ROWS)]
    distances = torch.pdist(rows.float().cpu())
    return float(distances.square().mul(-2).exp().mean().log())


def collapsed(features: Tensor) -> bool:
    """Whether features (R, D) have collapsed: `effective_rank` − 1 is under 5 % of its highest.

    The highest is min(R, D) − 1; the 1 is the rank of features that are all the same.
    """
    return effective_rank(features) - 1 < COLLAPSED_SHARE * (min(features.shape) - 1)
