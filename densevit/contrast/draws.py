"""Random numbers for the pictures of a batch that may be worked on in parts."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PartDraws:
    """Draws for the `first` and following pictures of a batch of `total`.

    The numbers of the whole batch are drawn and those of the part are taken, so that they are the
    same for a picture whether one process works on the batch at once or several on parts of it.
    Each part needs a generator of its own, in the same state.
    """

    generator: torch.Generator
    first: int
    total: int


def uniform(
    batch: int,
    patches: int,
    generator: torch.Generator | PartDraws | None,
    device: torch.device | str,
) -> Tensor:
    """Uniform numbers (batch, patches) in [0, 1), drawn where the generator lives.

    From torch's default generator if None. A CPU generator gives the same on every device.
    """
    if isinstance(generator, PartDraws):
        whole = uniform(generator.total, patches, generator.generator, device)
        return whole[generator.first : generator.first + batch]
    source = device if generator is None else generator.device
    return torch.rand(batch, patches, generator=generator, device=source).to(device)
