"""Word error of audio-visual speech recognizers over noise and compression rate, all trained under one protocol.

Encoders and language model are trained once. Every system then trains on the same features, with the same steps and
seed: Llama-AVSR once per rate and modality, Llama-MTSK and MoME once for all rates, each between frozen encoders and
language model. EchoingPixels trains its language model too, once for all shares of its pool, and starts from a model
that has learned, in as many steps, to read the whole pool.
"""

from foveate.benchmark.avsr.formatting import draw, label, sound_table, table
from foveate.benchmark.avsr.run import SYSTEMS, AVSRSettings, quick, run, word_errors

__all__ = ["SYSTEMS", "AVSRSettings", "draw", "label", "quick", "run", "sound_table", "table", "word_errors"]
