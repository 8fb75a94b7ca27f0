"""Features of frames and text in one space, by a contrastive model such as CLIP or SigLIP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError

from foveate.core.errors import FoveateError
from foveate.core.weights import DATA_ONLY, SAFE, check_weights

#: Frames that the encoder reads at once.
BATCH = 16


class ContrastiveEncoder:
    """Features of images and text in one space, of a model such as CLIP or SigLIP.

    Args:
        name: Folder or Hub id.

    Raises:
        FoveateError: it cannot be loaded, its weights are pickled, or it has no such features.
    """

    def __init__(self, name: str) -> None:
        from transformers import AutoModel, AutoProcessor

        try:
            check_weights(name)
            self.processor: Any = AutoProcessor.from_pretrained(name, **DATA_ONLY)
            self.model: Any = AutoModel.from_pretrained(name, **SAFE).eval()
        except (OSError, ValueError, ImportError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise FoveateError(f"the encoder {name!r} cannot be loaded: {reason}.") from error
        if not hasattr(self.model, "get_text_features") or not hasattr(self.model, "get_image_features"):
            raise FoveateError(
                f"the encoder {name!r} has no features of images and text in one space; name a "
                "contrastive model, such as openai/clip-vit-large-patch14."
            )
        if torch.cuda.is_available():
            self.model.to("cuda")

    @torch.inference_mode()
    def text(self, text: str) -> torch.Tensor:
        """The normalised features (D,) of a text, cut off where the model's text encoder ends."""
        longest = self.model.config.text_config.max_position_embeddings
        # SigLIP was trained with padded text and has no mask for it.
        inputs = self.processor(
            text=[text],
            return_tensors="pt",
            padding="max_length",
            padding_side="right",
            truncation=True,
            max_length=longest,
        )
        return self._features(self.model.get_text_features(**inputs.to(self.model.device)))[0]

    @torch.inference_mode()
    def images(self, images: list[np.ndarray]) -> torch.Tensor:
        """The normalised features (B, D) of images (H, W, 3), uint8, RGB."""
        inputs = self.processor(images=images, return_tensors="pt", input_data_format="channels_last")
        return self._features(self.model.get_image_features(**inputs.to(self.model.device)))

    def frames(self, frames: Iterable[tuple[float, np.ndarray]]) -> Iterator[tuple[list[float], torch.Tensor]]:
        """Times and normalised features (b, D) of frames as a `FrameSource` reads them, some at once."""
        remaining = iter(frames)
        while batch := list(islice(remaining, BATCH)):
            yield [time for time, _ in batch], self.images([pixels for _, pixels in batch])

    @staticmethod
    def _features(output: Any) -> torch.Tensor:
        output = output if isinstance(output, torch.Tensor) else output.pooler_output
        return F.normalize(output.float(), dim=-1).cpu()


#: The encoder of the last plan stays loaded for the next clip.
contrastive_encoder = lru_cache(maxsize=1)(ContrastiveEncoder)
