"""The command `coordinator-cli`: start a cluster, serve, generate, look at the state.

Modules named after a command hold its flags and import what the command needs only when it runs,
so that `--help` and `generate` start quickly.
"""
