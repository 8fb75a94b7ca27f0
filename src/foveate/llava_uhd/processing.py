"""Processor of LLaVA-UHD: prompts and images in, model inputs out."""

from typing import Any

from transformers.processing_utils import MultiModalData, ProcessorMixin

from foveate.errors import FoveateError

from .chat_template import CHAT_TEMPLATE, IMAGE_TOKEN


class LlavaUHDProcessor(ProcessorMixin):
    """An image processor and a tokenizer, called as one.

    `processor(images=..., text=..., return_tensors="pt", padding=True)` writes, for each image placeholder in the
    text, as many placeholders as the image has tokens after the last stage, and returns `input_ids` and
    `attention_mask (batch, length)`, `pixel_values (L, C, p, p)` and `grid_hws (n, 2)`. Images come in the order of
    their placeholders, as a flat list or as one list for each prompt.

    Args:
        image_processor: a `LlavaUHDImageProcessor`.
        tokenizer: the tokenizer of the language model; the placeholder is added to it where it is missing.
        chat_template: a Jinja template; ChatML turns where not given (`foveate.llava_uhd.chat_template`).
        image_token: the placeholder.

    Example:
        >>> messages = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "?"}]}]
        >>> inputs = processor.apply_chat_template(
        ...     messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ... )
        >>> answer = model.generate(**inputs, max_new_tokens=20)[:, inputs["input_ids"].shape[1]:]
        >>> processor.batch_decode(answer, skip_special_tokens=True)
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | dict[str, str] | None = None,
        image_token: str = IMAGE_TOKEN,
    ) -> None:
        self.image_token = image_token
        if tokenizer is not None and image_token not in tokenizer.get_vocab():
            tokenizer.add_tokens([image_token], special_tokens=True)
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)

    def validate_inputs(self, images: Any = None, text: Any = None, **kwargs: Any) -> None:
        """Check that each prompt has as many placeholders as it has images.

        Raises:
            FoveateError: naming both counts, and the prompt where images came as one list for each prompt.
        """
        if text is not None:
            prompts = [text] if isinstance(text, str) else text
            placeholders = [prompt.count(self.image_token) for prompt in prompts]
            counts = _images_per_prompt(images)
            if isinstance(counts, list) and len(counts) == len(placeholders):
                for index, (found, given) in enumerate(zip(placeholders, counts)):
                    if found != given:
                        raise FoveateError(
                            f"prompt {index} has {found} {self.image_token} placeholders, but {given} images came with it"
                        )
            else:
                given = sum(counts) if isinstance(counts, list) else counts
                if sum(placeholders) != given:
                    raise FoveateError(
                        f"the text has {sum(placeholders)} {self.image_token} placeholders, but {given} images came"
                        " with it"
                    )
        super().validate_inputs(images=images, text=text, **kwargs)

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """The placeholders of one image: one for each token after the last stage."""
        rows, columns = (int(side) for side in image_inputs["grid_hws"][image_idx])
        return self.image_token * self._merged(rows, columns)

    def _merged(self, rows: int, columns: int) -> int:
        """Tokens that the stages leave of a grid of patches, known from sizes alone."""
        side = 2**self.image_processor.num_stages
        if rows % side or columns % side:
            raise FoveateError(
                f"a grid of {rows} x {columns} patches cannot be divided by {self.image_processor.num_stages} stages:"
                f" both sides must be multiples of {side}"
            )
        return (rows // side) * (columns // side)

    @property
    def model_input_names(self) -> list[str]:
        names = [*self.tokenizer.model_input_names, *self.image_processor.model_input_names]
        return [name for name in dict.fromkeys(names) if name != "token_type_ids"]


def _images_per_prompt(images: Any) -> int | list[int]:
    """Number of images: of all prompts (a flat list), or of each (one list for each prompt)."""
    if images is None:
        return 0
    if not isinstance(images, (list, tuple)):
        return 1
    if any(isinstance(group, (list, tuple)) for group in images):
        return [len(group) if isinstance(group, (list, tuple)) else 1 for group in images]
    return len(images)
