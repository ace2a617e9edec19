"""A range of a model's decoder layers: which families are served, loading and running them."""
