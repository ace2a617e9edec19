"""Checks one card against limits, in at most ten minutes: `make gpu-check`.

Each check is a module, and runs as a process of its own: a fault that makes CUDA useless to a
process, or a hang, ends one check and no other. A check names its rows before it measures anything,
so that what it did not reach is seen. The process that starts the checks imports no torch; it
judges each figure by the limit that came with it, and writes `report.md` and `report.json`.
"""
