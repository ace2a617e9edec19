"""`coordinator-cli status --watch`: the state of a cluster, again and again.

`sampler` asks and listens, `step_window` sums up, `screen` and `output` show.
"""
