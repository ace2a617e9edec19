"""`coordinator-cli status --watch`: the state of a cluster, again and again.

`sampler` asks, listens and sums up, `screen` and `output` show.
"""
