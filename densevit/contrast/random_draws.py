"""Random numbers for a batch that may be processed in parts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class PartDraws:
    """Random draws for part of a batch of `total` images, from image `first` on.

    The numbers of the whole batch are drawn and only those of the part are returned. An image thus
    gets the same numbers whether one process handles the batch or several handle parts of it.
    Each part needs its own generator, in the same state.
    """

    generator: torch.Generator
    first: int
    total: int


Draws = torch.Generator | PartDraws


def copy_of(draws: Draws) -> Draws:
    """Return draws that give the same numbers and leave the original as it is."""
    if isinstance(draws, PartDraws):
        return replace(draws, generator=draws.generator.clone_state())
    return draws.clone_state()


def uniform(
    batch: int, patches: int, generator: Draws | None, device: torch.device | str
) -> Tensor:
    """Return uniform numbers (batch, patches) in [0, 1), drawn on the generator's device.

    None is torch's default generator. A CPU generator gives the same numbers for every device.
    """
    if isinstance(generator, PartDraws):
        whole = uniform(generator.total, patches, generator.generator, device)
        return whole[generator.first : generator.first + batch]
    source = device if generator is None else generator.device
    return torch.rand(batch, patches, generator=generator, device=source).to(device)
