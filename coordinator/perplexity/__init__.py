"""Measures how well a served model expects a text: perplexity, with its standard error."""
