"""Vectors as long as a model, sketched to a few thousand numbers that keep inner products."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch


class CountSketch:
    """A signed count sketch (Charikar, Chen and Farach-Colton 2002; Weinberger et al. 2009).

    Every one of P entries is added, with a random sign, to one of `dims` random buckets: (S x)_k
    is the sum of sign(i) x_i over the i in bucket k. E<Sx, Sy> = <x, y>, with variance at most
    (|x|^2 |y|^2 + <x, y>^2) / dims, as for the paper's dense Rademacher matrix; but applying it
    costs P additions instead of P x dims, and keeping it 4 P bytes instead of P x dims signs.
    """

    def __init__(self, sizes: Sequence[int], dims: int, seed: int, device: Any = "cpu"):
        self.sizes, self.dims, self.seed, self.device = list(sizes), dims, seed, device
        # Drawn on the CPU, so that the sketch is the same on every device.
        generator = torch.Generator().manual_seed(seed)
        # One draw says bucket and sign: places from `dims` on count as minus.
        self._places = [
            torch.randint(2 * dims, (size,), generator=generator, dtype=torch.int32).to(device)
            for size in self.sizes
        ]

    def __call__(self, tensors: Iterable[torch.Tensor]) -> torch.Tensor:
        """Sketch (dims,) in float32 of the vector that the tensors make together.

        Raises
        ------
        ValueError
            If the tensors have other sizes than the sketch was made for.
        """
        both = torch.zeros(2 * self.dims, device=self.device)
        # One tensor at a time: those of a large model need not be in memory together.
        for places, tensor in zip(self._places, tensors, strict=True):
            if tensor.numel() != len(places):
                raise ValueError(f"a tensor of {tensor.numel()} entries, not {len(places)}")
            both.index_add_(0, places, tensor.detach().flatten().float())
        return both[: self.dims] - both[self.dims :]


def sketch_of(model: Any, dims: int, seed: int) -> CountSketch:
    """The sketch of a model's parameters, on the model's device."""
    parameters = list(model.parameters())
    return CountSketch([p.numel() for p in parameters], dims, seed, parameters[0].device)
