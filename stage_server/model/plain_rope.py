"""Rotary frequencies of the kinds that most models have.

Plain (arXiv:2104.09864), linearly interpolated (arXiv:2306.15595), and as Llama 3.1 scales them:
low frequencies are divided, high ones stay, and those between are blended.
"""

import math
from collections.abc import Mapping

import torch
from torch import nn

KINDS: Mapping[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "llama3": frozenset(
        {"factor", "high_freq_factor", "low_freq_factor", "original_max_position_embeddings"}
    ),
}
"""Numbers that each kind goes by, beside the base."""


class PlainRope(nn.Module):
    """Computes the rotary embedding of all layers, in float32.

    Args:
        kind: One of `KINDS`.
        head_dim: Elements a head, even; all of them are rotated.
        base: Base of the frequencies.
        numbers: Numbers that the kind goes by.
    """

    inv_freq: torch.Tensor

    def __init__(
        self, kind: str, *, head_dim: int, base: float, numbers: Mapping[str, float]
    ) -> None:
        super().__init__()
        exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        inv_freq = 1.0 / base**exponents  # [head_dim / 2]
        match kind:
            case "default":
                pass
            case "linear":
                inv_freq /= numbers["factor"]
            case "llama3":
                inv_freq = _scaled_as_llama3(
                    inv_freq,
                    numbers["factor"],
                    numbers["low_freq_factor"],
                    numbers["high_freq_factor"],
                    numbers["original_max_position_embeddings"],
                )
            case _:
                raise AssertionError(f"{kind} is none of {sorted(KINDS)}")
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def forward(
        self, hidden: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes cosines and sines, `[1, num_tokens, head_dim]` each.

        Args:
            hidden: Gives the dtype.
            positions: int64 `[1, num_tokens]`.
        """
        angles = positions[..., None].float() * self.inv_freq  # [1, num_tokens, head_dim / 2]
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)


def _scaled_as_llama3(
    inv_freq: torch.Tensor,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    num_original_positions: float,
) -> torch.Tensor:
    wavelengths = 2 * math.pi / inv_freq
    longest = num_original_positions / low_freq_factor
    shortest = num_original_positions / high_freq_factor
    divided = torch.where(wavelengths > longest, inv_freq / factor, inv_freq)
    share = (num_original_positions / wavelengths - low_freq_factor) / (
        high_freq_factor - low_freq_factor
    )
    blended = (1 - share) * divided / factor + share * divided
    is_between = (wavelengths >= shortest) & (wavelengths <= longest)
    return torch.where(is_between, blended, divided)
