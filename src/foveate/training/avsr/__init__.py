"""Training of small audio-visual speech recognizers: encoders and language model first, then projectors and adapters.

As in the papers, the parts that recognize (projectors and adapters) are trained between frozen encoders and a frozen
language model. Here these are trained too, in minutes: the encoders to name the phoneme or viseme of each frame, the
language model on text alone.
"""

from foveate.training.avsr.recipe import AVSRRecipe, Task
from foveate.training.avsr.stages import train_encoders, train_language_model, train_recognizer

__all__ = ["AVSRRecipe", "Task", "train_encoders", "train_language_model", "train_recognizer"]
