"""Paged KV memory (PagedAttention, arXiv:2309.06180): block ids, slots, tensors, attention."""
