"""How a perplexity is shown: two lines for people, or one JSON object."""

import json
import math

from coordinator.perplexity.measure import Measured


def print_json(measured: Measured) -> None:
    """Prints one JSON object; what is not known, or no number of JSON, is null."""
    found, windows = measured.perplexity, measured.windows
    print(
        json.dumps(
            {
                "model": measured.model_id,
                "perplexity": _number(found.perplexity),
                "standard_error": _number(found.standard_error),
                "mean_nll": _number(found.mean_nll),
                "mean_nll_error": _number(found.mean_nll_error),
                "bits_per_byte": _number(found.bits_per_byte),
                "tokens": found.num_tokens,
                "context": windows.context,
                "stride": windows.stride,
            }
        )
    )


def print_lines(measured: Measured) -> None:
    """Prints the result for people."""
    found, windows = measured.perplexity, measured.windows
    error = "" if found.standard_error is None else f" +/- {found.standard_error:.4f}"
    print(f"perplexity {found.perplexity:.4f}{error} of {measured.model_id}")
    tokens = "1 token" if found.num_tokens == 1 else f"{found.num_tokens} tokens"
    print(
        f"{tokens} in windows of {windows.context} every {windows.stride};"
        f" {found.mean_nll:.5f} nats a token, {found.bits_per_byte:.5f} bits a byte"
    )


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
