"""Logits and parameters to token ids, exactly, from as few logits as possible; numpy only.

The order of the parameters is that of transformers and vLLM: logit bias, repetition, frequency and
presence penalty, temperature, top-k, top-p, min-p. Knows nothing of the wire, of batches or of
text.
"""

from coordinator.sampling.token_sampler import TokenSampler

__all__ = ["TokenSampler"]
