"""Scripts that print tables about speed and memory; never pass or fail. `make bench` runs them."""
