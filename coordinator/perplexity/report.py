"""How a perplexity is shown: two lines for people, or one JSON object."""

import json

from coordinator.perplexity.measure import Measured


def print_json(measured: Measured) -> None:
    """Prints one JSON object."""
    found, windows = measured.perplexity, measured.windows
    print(
        json.dumps(
            {
                "model": measured.model_id,
                "perplexity": found.perplexity,
                "standard_error": found.standard_error,
                "mean_nll": found.mean_nll,
                "mean_nll_error": found.mean_nll_error,
                "bits_per_byte": found.bits_per_byte,
                "tokens": found.num_tokens,
                "context": windows.context,
                "stride": windows.stride,
            }
        )
    )


def print_lines(measured: Measured) -> None:
    """Prints the result for people."""
    found, windows = measured.perplexity, measured.windows
    print(
        f"perplexity {found.perplexity:.4f} +/- {found.standard_error:.4f} of {measured.model_id}"
    )
    print(
        f"{found.num_tokens} tokens in windows of {windows.context} every {windows.stride};"
        f" {found.mean_nll:.5f} nats a token, {found.bits_per_byte:.5f} bits a byte"
    )
