"""Audio-visual speech recognition with a language model: Llama-AVSR, Llama-MTSK and MoME."""

from foveate.models.avsr.configuration import AVSRConfig, LipEncoderConfig
from foveate.models.avsr.lip_encoder import LipEncoder
from foveate.models.avsr.modeling import AVSRForConditionalGeneration
from foveate.models.avsr.rates import Rates, audio_frames

__all__ = [
    "AVSRConfig",
    "AVSRForConditionalGeneration",
    "LipEncoder",
    "LipEncoderConfig",
    "Rates",
    "audio_frames",
    "register",
]


def register() -> None:
    """Make the Auto classes of `transformers` know these models. Calling it again changes nothing."""
    from transformers import AutoConfig, AutoModel, AutoModelForSpeechSeq2Seq

    AutoConfig.register(LipEncoderConfig.model_type, LipEncoderConfig, exist_ok=True)
    AutoConfig.register(AVSRConfig.model_type, AVSRConfig, exist_ok=True)
    AutoModel.register(LipEncoderConfig, LipEncoder, exist_ok=True)
    AutoModelForSpeechSeq2Seq.register(AVSRConfig, AVSRForConditionalGeneration, exist_ok=True)
