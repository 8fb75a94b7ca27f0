"""Connectors and encoders trained under one protocol and compared once: `foveate bench trained`.

Every training has the same language model, images, steps and seed. Of connectors only they differ; encoders are
trained from random weights. `systems`
has the table of what is trained, `recipes` the recipe of a training, `running` trains and evaluates, `cost` measures,
`claims` compares with the papers, and `formatting` shows.
"""

from foveate.benchmark.trained.formatting import front, table
from foveate.benchmark.trained.running import conclude, run
from foveate.benchmark.trained.settings import ClipTrainedSettings, TrainedSettings
from foveate.benchmark.trained.systems import SYSTEMS, VIDEO_SYSTEMS, System, Training, systems_by_name, trainings

__all__ = [
    "SYSTEMS",
    "VIDEO_SYSTEMS",
    "ClipTrainedSettings",
    "System",
    "TrainedSettings",
    "Training",
    "conclude",
    "front",
    "run",
    "systems_by_name",
    "table",
    "trainings",
]
