"""Processor of LLaVA for clips: prompts, images and clips in, model inputs out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, LlavaProcessor
from transformers.image_utils import get_image_size, to_numpy_array

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid, encoder_grid
from foveate.models.encoders import EncoderConfig
from foveate.models.llava.processing import encoder_config_of, encoder_fields
from foveate.models.llava_video.modeling import NO_WORD
from foveate.models.video_connectors import video_connector_of_sizes

#: Words of an instruction that are read, of the last ones.
MAX_WORDS = 256


class FoveateLlavaVideoProcessor(LlavaProcessor):
    """`LlavaProcessor` that reads clips too, and counts the tokens of a video connector.

    Frames of clips are processed as images are, by the image processor.

    Args:
        image_processor: An image processor of CLIP or SigLIP.
        tokenizer: The tokenizer of the language model, with both placeholders in its vocabulary.
        patch_size: Of a vision tower that gives one token per patch.
        vision_feature_select_strategy: As in the model's configuration.
        chat_template: A Jinja template.
        image_token: The placeholder of images.
        num_additional_image_tokens: Tokens of the tower besides the patches: 1 for [CLS] of CLIP.
        video_token: The placeholder of clips.
        connector_type: The video connector of the model.
        connector_options: Its options.
        encoder: Fields of the configuration of an encoder of `foveate.models.encoders`, with its `model_type`.
        instruction_source: Folder or Hub id of the tokenizer of the text encoder, for connectors that read what a
            clip is asked about; None: the tokenizer of the language model.
        instruction_length: Words that every instruction is padded or cut to, as SigLIP reads texts (64); None: they
            keep their lengths up to 256.

    Raises:
        FoveateError: There is no such connector, option or encoder, or the tokenizer lacks a placeholder.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int | None = None,
        vision_feature_select_strategy: str | None = None,
        chat_template: str | None = None,
        image_token: str = "<image>",
        num_additional_image_tokens: int = 0,
        video_token: str = "<video>",
        connector_type: str = "average",
        connector_options: dict[str, Any] | None = None,
        encoder: dict[str, Any] | None = None,
        instruction_source: str | None = None,
        instruction_length: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.connector_type = connector_type
        self.connector_options = connector_options
        self.connector = video_connector_of_sizes(connector_type, connector_options)
        self.encoder = encoder
        self.encoder_config: EncoderConfig | None = None if encoder is None else encoder_config_of(encoder)
        self.instruction_source = instruction_source
        self.instruction_length = instruction_length
        self.video_token = getattr(tokenizer, "video_token", None) or video_token
        super().__init__(
            image_processor,
            tokenizer,
            patch_size,
            vision_feature_select_strategy,
            chat_template,
            image_token,
            num_additional_image_tokens,
            **kwargs,
        )
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        if self.video_token_id is None or self.video_token_id == tokenizer.unk_token_id:
            raise FoveateError(
                f"the tokenizer lacks the placeholder {self.video_token}: add it with add_tokens(..., "
                "special_tokens=True)."
            )

    def frame_grid(self, height: int, width: int) -> Grid:
        """Rows and columns of the features of a frame of this size in pixels."""
        return encoder_grid(self if self.encoder_config is None else self.encoder_config, height, width)

    def tokens_of(self, frames: int, height: int, width: int) -> int:
        """Placeholders of a clip of so many frames of this size in pixels, as the image processor returns them."""
        return self.connector.output_shape(frames, self.frame_grid(height, width)).size

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """The placeholders of an image, which is a clip of equal frames."""
        height, width = get_image_size(to_numpy_array(image_inputs["pixel_values"][image_idx]))
        return self.image_token * self.tokens_of(self.connector.image_frames, height, width)

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        videos: Any = None,
        video_timestamps: Sequence[Sequence[float]] | None = None,
        instructions: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Process prompts with images and clips.

        Args:
            images: As for `LlavaProcessor`.
            text: A prompt or several, with a placeholder for every image and clip.
            videos: A clip or a list of them, in the order of the prompts: each `(T, H, W, 3)` uint8 in RGB, or a list
                of T images.
            video_timestamps: Seconds of the frames of every clip; None: unknown.
            instructions: What every prompt asks, for connectors that read it; None: its text without placeholders.
            **kwargs: As for `LlavaProcessor`.

        Returns:
            With clips also `pixel_values_videos (n, T, C, H, W)`, padded with zeros, `frame_counts (n,)` and, where
            they are known, `video_timestamps (n, T)`.

        Raises:
            FoveateError: Clips and placeholders do not agree, frames of the clips have several sizes, or timestamps are
                not those of the frames.
        """
        text = [text] if isinstance(text, str) else list(text or [])
        clips = _clips(videos)
        found = [prompt.count(self.video_token) for prompt in text]
        if sum(found) != len(clips):
            raise FoveateError(
                f"the prompts have {sum(found)} placeholders of clips, and there are {len(clips)} clips."
            )
        plain = list(text)
        extra: dict[str, Any] = {}
        if clips:
            extra, sizes = self.clip_inputs(clips, video_timestamps, **kwargs)
            counts = iter([self.tokens_of(*size) for size in sizes])
            text = [_replaced(prompt, self.video_token, counts) for prompt in text]
        if self.connector.reads_text:
            asked = plain if instructions is None else list(instructions)
            if len(asked) != len(plain):
                raise FoveateError(f"there are {len(plain)} prompts and {len(asked)} instructions.")
            pictures = [prompt.count(self.image_token) for prompt in plain]
            extra |= self.instruction_ids(asked, pictures, found)
        batch = super().__call__(images=images, text=text, **kwargs)
        batch.update(BatchFeature(extra, tensor_type=kwargs.get("return_tensors")))
        return batch

    def validate_inputs(self, images: Any = None, text: Any = None, **kwargs: Any) -> None:
        """Check images against their placeholders; clips and theirs are checked before."""
        prompts = text if text is None else [prompt.replace(self.video_token, "") for prompt in text]
        super().validate_inputs(images=images, text=prompts, **kwargs)

    def _frames(self, clip: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        """Pixels `(T, C, H, W)` of the frames of a clip, with the options that images have."""
        names = set(getattr(getattr(self.image_processor, "valid_kwargs", None), "__annotations__", ())) - {
            "return_tensors"
        }
        own = {name: value for name, value in kwargs.items() if name in names}
        own = {**kwargs.get("images_kwargs", {}), **own, "return_tensors": "pt"}
        return self.image_processor(list(clip), **own)["pixel_values"]

    def clip_inputs(
        self, clips: Sequence[Sequence[Any]], timestamps: Sequence[Sequence[float]] | None = None, **kwargs: Any
    ) -> tuple[dict[str, Tensor], list[tuple[int, int, int]]]:
        """Process clips without prompts.

        Args:
            clips: Frames of each, as images or as `(T, H, W, 3)`.
            timestamps: Seconds of the frames of every clip; None: unknown.
            **kwargs: Options of the image processor.

        Returns:
            `pixel_values_videos`, `frame_counts` and `video_timestamps`, and the frames, height and width in pixels of
            every clip.

        Raises:
            FoveateError: Frames have several sizes, or timestamps are not those of the frames.
        """
        pixels = [self._frames(clip, kwargs) for clip in clips]
        inputs = _padded(pixels) | _padded_timestamps(timestamps, [len(clip) for clip in pixels])
        return inputs, [(len(clip), clip.shape[-2], clip.shape[-1]) for clip in pixels]

    def instruction_ids(self, asked: Sequence[str], images: Sequence[int], clips: Sequence[int]) -> dict[str, Tensor]:
        """`video_instruction_ids` and `image_instruction_ids`, one row for every clip and image.

        Args:
            asked: What each prompt asks.
            images: How many images each prompt has.
            clips: How many clips each prompt has.
        """
        tokenizer = self._words_tokenizer()
        ids = []
        for words in asked:
            plain = words.replace(self.video_token, " ").replace(self.image_token, " ").strip()
            if self.instruction_length is None:
                row = tokenizer(plain, truncation=False)["input_ids"][-MAX_WORDS:]
            else:
                length = {"max_length": self.instruction_length, "padding": "max_length", "truncation": True}
                row = tokenizer(plain, padding_side="right", **length)["input_ids"]
            ids.append(torch.tensor(row, dtype=torch.int64))
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=NO_WORD)
        rows = {"video_instruction_ids": clips, "image_instruction_ids": images}
        return {name: padded.repeat_interleave(torch.tensor(n), 0) for name, n in rows.items() if sum(n)}

    def _words_tokenizer(self) -> Any:
        """The tokenizer of the connector's text encoder."""
        if self.instruction_source is None:
            return self.tokenizer
        from transformers import AutoTokenizer

        from foveate.core.weights import DATA_ONLY

        if not hasattr(self, "_words"):
            self._words = AutoTokenizer.from_pretrained(self.instruction_source, **DATA_ONLY)
        return self._words


def pair(model: Any, processor: FoveateLlavaVideoProcessor) -> None:
    """Make a model take the processor's placeholders, and check that both agree in the connector and the patches.

    Raises:
        FoveateError: They do not, or the model's vocabulary lacks a placeholder.
    """
    config = model.config
    read = processor.connector.read_options
    theirs, ours = (read(dict(options or {})) for options in (processor.connector_options, config.connector_options))
    if processor.connector_type != config.connector_type or theirs != ours:
        raise FoveateError(
            f"the processor counts the tokens of the connector {processor.connector_type} with {theirs}, and the model "
            f"has {config.connector_type} with {ours}."
        )
    fields = encoder_fields(config.vision_config).get("encoder")
    if (fields or {}).get("model_type") != (processor.encoder or {}).get("model_type"):
        raise FoveateError("processor and model have different vision towers.")
    if fields is None and processor.patch_size != config.vision_config.patch_size:
        raise FoveateError(
            f"the processor has patch_size {processor.patch_size}, but the vision tower has "
            f"{config.vision_config.patch_size}."
        )
    vocabulary = config.text_config.vocab_size
    for name, token in (("image", processor.image_token_id), ("video", processor.video_token_id)):
        if token >= vocabulary:
            raise FoveateError(
                f"the {name} placeholder has the id {token}, which the model's vocabulary (0 to {vocabulary - 1}) "
                "lacks: resize_token_embeddings first."
            )
    config.image_token_id, config.video_token_id = processor.image_token_id, processor.video_token_id


def _clips(videos: Any) -> list[Any]:
    """A list of clips.

    Raises:
        FoveateError: One is no array of frames and no list of images.
    """
    if videos is None:
        return []
    if isinstance(videos, (str, PathLike)):
        videos = [videos]
    if isinstance(videos, (np.ndarray, Tensor)):
        videos = [videos] if videos.ndim == 4 else list(videos)
    elif videos and _is_frame(videos[0]):
        videos = [videos]
    clips = []
    for number, clip in enumerate(videos):
        if isinstance(clip, Tensor):
            clip = clip.cpu().numpy()
        if isinstance(clip, (str, PathLike)):
            raise FoveateError(f"clip {number} must be its frames, and {str(clip)!r} is a path: read the file first.")
        if len(clip) == 0 or (isinstance(clip, np.ndarray) and (clip.ndim != 4 or clip.shape[-1] != 3)):
            shape = clip.shape if isinstance(clip, np.ndarray) else "no frames"
            raise FoveateError(f"clip {number} must be (frames, height, width, 3) or a list of images, not {shape}.")
        clips.append(clip)
    return clips


def _is_frame(item: Any) -> bool:
    """Whether an item of a list is a frame, and not a clip."""
    if isinstance(item, (np.ndarray, Tensor)):
        return item.ndim == 3
    return not isinstance(item, (list, tuple, str, PathLike))


def _padded(pixels: list[Tensor]) -> dict[str, Tensor]:
    """Clips in one tensor, and the number of frames of each.

    Raises:
        FoveateError: Their frames have several sizes.
    """
    if len({clip.shape[1:] for clip in pixels}) > 1:
        sizes = ", ".join(sorted({f"{clip.shape[-2]} x {clip.shape[-1]}" for clip in pixels}))
        raise FoveateError(
            f"frames of all clips of a batch must have one size in pixels after processing, not {sizes}."
        )
    padded = torch.nn.utils.rnn.pad_sequence(pixels, batch_first=True)
    return {"pixel_values_videos": padded, "frame_counts": torch.tensor([len(clip) for clip in pixels])}


def _padded_timestamps(timestamps: Any, lengths: list[int]) -> dict[str, Tensor]:
    """Timestamps of the frames in one tensor; empty: they are unknown.

    Raises:
        FoveateError: They are not those of the frames.
    """
    if timestamps is None:
        return {}
    rows = [torch.as_tensor(row, dtype=torch.float32) for row in timestamps]
    if [len(row) for row in rows] != lengths:
        raise FoveateError(
            f"video_timestamps must have one number for every frame, {lengths}, not {[len(row) for row in rows]}."
        )
    return {"video_timestamps": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)}


def _replaced(prompt: str, token: str, counts: Any) -> str:
    """A prompt with as many placeholders in place of each as its clip has tokens."""
    first, *others = prompt.split(token)
    return first + "".join(token * next(counts) + other for other in others)
