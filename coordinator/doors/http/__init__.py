"""The HTTP door: the OpenAI-compatible API in front of an engine."""
