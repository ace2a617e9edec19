"""How the idle CPU threads of a stage wait.

Several stages often share one machine, and only one of them is busy at a time. By default, OpenMP
threads spin for milliseconds after each parallel region, and take the cores from the busy stage.
Here idle threads soon sleep, unless the user says otherwise.
"""

import os

_PASSIVE_WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "20000"}
"""Spins for some tens of microseconds, which spans the Python between two operations of a busy
stage, and then sleeps. Measured on two cores with three stages: a fifth faster than no spinning,
and with fifteen times as many spins idle stages took the cores of the busy one."""


def wait_passively() -> None:
    """Sets the environment of OpenMP; takes effect only before torch is imported.

    A variable that the user has set stays, and then none is changed: they belong together.
    """
    if not _PASSIVE_WAITING.keys() & os.environ.keys():
        os.environ.update(_PASSIVE_WAITING)
