"""The global loss: one query and one key per image (MoCo; He et al., CVPR 2020)."""

from __future__ import annotations

from torch import Tensor

from densevit.config.run_config import RunConfig
from densevit.contrast.pairs import PairFunctions, Pairs, View, project_keys, unit
from densevit.contrast.random_draws import Draws


def make_pairs(
    config: RunConfig,
    view1: View,
    view2: View,
    draws: Draws,
    true_matches: Tensor | None,
) -> Pairs:
    """Pair the image tokens (B, E) of the two views."""
    keys = project_keys(view2.head, view2.tokens.image)  # (B, D)
    queries = unit(view1.head(view1.tokens.image))
    return Pairs(queries, unit(keys), keys.unsqueeze(1))


FUNCTIONS = PairFunctions(make_pairs)
