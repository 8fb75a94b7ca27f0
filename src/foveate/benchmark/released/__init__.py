"""Benchmark of a released model on public tasks: scores and speed of plans, with rows for the leaderboard.

An `Evaluator` asks the questions of one task with one plan; `foveate.integrations.lmms_eval` has the one that runs
lmms-eval. Every task x plan is one file, written when it is complete, so that a run can be stopped at any time and the
same command continues it.
"""

from foveate.benchmark.released.evaluations import Evaluation, Evaluator
from foveate.benchmark.released.leaderboard import LeaderboardRow, read_leaderboard
from foveate.benchmark.released.run import RESULT, run
from foveate.benchmark.released.settings import TASKS, ReleasedSettings

__all__ = [
    "RESULT",
    "TASKS",
    "Evaluation",
    "Evaluator",
    "LeaderboardRow",
    "ReleasedSettings",
    "read_leaderboard",
    "run",
]
