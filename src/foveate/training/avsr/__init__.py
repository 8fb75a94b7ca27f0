"""Training of small audio-visual speech recognizers: encoders and language model first, then what each system trains.

As in the papers, the encoders are frozen, and the language model too, except for EchoingPixels. Both are trained here
first, in minutes: the encoders to name the phoneme or viseme of each frame, the language model on text alone.
"""

from foveate.training.avsr.recipe import AVSRRecipe
from foveate.training.avsr.stages import train_encoders, train_language_model, train_recognizer
from foveate.training.avsr.tasks import PoolTask, Task

__all__ = ["AVSRRecipe", "PoolTask", "Task", "train_encoders", "train_language_model", "train_recognizer"]
