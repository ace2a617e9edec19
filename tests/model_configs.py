"""A `config.json` for tests that look at what lies beside it."""


def smallest_config(*, vocab_size: int) -> dict[str, object]:
    """Says what a model has to say, and no more."""
    return {
        "model_type": "llama",
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "vocab_size": vocab_size,
        "max_position_embeddings": 16,
        "rms_norm_eps": 1e-5,
    }
