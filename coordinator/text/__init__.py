"""Text to token ids and back: tokenizer, chat template, detokenizer, stop strings.

Built on the `tokenizers` library and jinja2 alone; imports neither torch nor transformers.
"""
