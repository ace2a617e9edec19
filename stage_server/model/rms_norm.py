"""Root-mean-square norm (arXiv:1910.07467), in the fewest operations that the device has."""

import torch
from torch import nn
from torch.nn import functional


class RmsNorm(nn.Module):
    """`hidden / sqrt(mean(hidden ** 2) + eps) * weight` over the last dimension.

    torch has one kernel for it on CUDA. On the CPU its own takes seven operations, and what they
    cost is waking code that the weights have driven out of the caches; in float32, where the sum
    of squares needs no wider type, four will do.

    Args:
        weight: `[size]`.
        eps: Added to the mean.
    """

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        super().__init__()
        self.weight = nn.Buffer(weight)
        self._eps = eps
        self._eps_tensor = torch.tensor(eps, dtype=weight.dtype, device=weight.device)
        self._is_short = weight.dtype == torch.float32 and weight.device.type == "cpu"

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Norms `[..., size]`, of the weight's dtype; returns a tensor of its own."""
        if not self._is_short:
            return functional.rms_norm(hidden, self.weight.shape, self.weight, self._eps)
        length = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True)
        mean = torch.addcmul(self._eps_tensor, length, length, value=1 / hidden.shape[-1])
        return torch.mul(hidden, mean.rsqrt_()).mul_(self.weight)
