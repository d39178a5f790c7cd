"""Many runs: a grid of methods, seeds and settings, on this machine or on a cluster."""

from ltat.sweeps.local import Local
from ltat.sweeps.plans import RunPlan, plan_run
from ltat.sweeps.running import Interrupted, run_sweep, states_of
from ltat.sweeps.state import Phase, RunState
from ltat.sweeps.table import SweepReporter
from ltat.sweeps.teachers import share_teachers

__all__ = [
    "Interrupted",
    "Local",
    "Phase",
    "RunPlan",
    "RunState",
    "SweepReporter",
    "plan_run",
    "run_sweep",
    "share_teachers",
    "states_of",
]
