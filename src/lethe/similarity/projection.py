"""Sketches vectors as long as a model to a few thousand numbers that preserve inner products."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch


class CountSketch:
    """A signed count sketch (Charikar, Chen and Farach-Colton 2002; Weinberger et al. 2009).

    Every one of P entries is added, with a random sign, to one of `dims` random buckets: (S x)_k
    is the sum of sign(i) x_i over the i in bucket k. E<Sx, Sy> = <x, y>, with variance at most
    (|x|^2 |y|^2 + <x, y>^2) / dims, as for the paper's dense Rademacher matrix. It costs P
    additions instead of P x dims, and 4 P bytes of memory instead of P x dims signs.
    """

    def __init__(self, sizes: Sequence[int], dims: int, seed: int, device: Any = "cpu"):
        self.sizes = list(sizes)
        self.dims = dims
        self.seed = seed
        self.device = device
        # Drawn on the CPU, so that the sketch is the same on every device.
        generator = torch.Generator().manual_seed(seed)
        # One draw gives bucket and sign: buckets from `dims` on have the sign minus.
        self._buckets = []
        for size in self.sizes:
            buckets = torch.randint(2 * dims, (size,), generator=generator, dtype=torch.int32)
            self._buckets.append(buckets.to(device))

    def __call__(self, tensors: Iterable[torch.Tensor]) -> torch.Tensor:
        """Sketches the concatenation of the tensors to (dims,) in float32.

        Raises
        ------
        ValueError
            If the sizes of the tensors are not those that the sketch was made for.
        """
        signed = torch.zeros(2 * self.dims, device=self.device)
        # One tensor at a time, so that those of a large model need not be in memory together.
        for buckets, tensor in zip(self._buckets, tensors, strict=True):
            if tensor.numel() != len(buckets):
                raise ValueError(
                    f"the sketch expects a tensor of {len(buckets)} entries, not {tensor.numel()}"
                )
            signed.index_add_(0, buckets, tensor.detach().flatten().float())
        return signed[: self.dims] - signed[self.dims :]


def sketch_of(model: Any, dims: int, seed: int) -> CountSketch:
    """Makes a sketch for a model's parameters, on the model's device."""
    parameters = list(model.parameters())
    return CountSketch([p.numel() for p in parameters], dims, seed, parameters[0].device)
