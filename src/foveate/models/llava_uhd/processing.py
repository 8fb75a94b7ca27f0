"""Processor of LLaVA-UHD: prompts and images in, model inputs out."""

from os import PathLike
from typing import Any

from transformers import AutoTokenizer
from transformers.processing_utils import MultiModalData, ProcessorMixin

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.core.weights import DATA_ONLY, WHERE, file_of
from foveate.images import inline, open_image, open_written
from foveate.models.connectors.connector import Connector
from foveate.models.connectors.registry import connector_of_sizes
from foveate.models.llava.lengths import NestedEncoder, nested_part
from foveate.models.llava.processing import encoder_config_of
from foveate.models.llava_uhd.chat_template import CHAT_TEMPLATE, IMAGE_TOKEN
from foveate.models.llava_uhd.checkpoint import is_released
from foveate.models.llava_uhd.configuration import LlavaUHDConfig
from foveate.models.llava_uhd.image_processing import LlavaUHDImageProcessor
from foveate.models.llava_uhd.voco import VOCO_TOKEN


class LlavaUHDProcessor(ProcessorMixin):
    """An image processor and a tokenizer, called as one.

    `processor(images=..., text=..., return_tensors="pt", padding=True)` writes, for each image placeholder in
    the text, as many placeholders as the image has tokens after the connector, and returns `input_ids` and
    `attention_mask (batch, length)`, `pixel_values (L, C, p, p)` and `grid_hws (n, 2)`. Images come in the
    order of their placeholders, as a flat list or as one list for each prompt.

    Args:
        image_processor: a `LlavaUHDImageProcessor`.
        tokenizer: the tokenizer of the language model; the placeholder is added to it where it is missing.
        chat_template: a Jinja template; ChatML turns where not given (`foveate.models.llava_uhd.chat_template`).
        image_token: the placeholder.
        num_voco_tokens: VoCo tokens that are written after every image (`foveate.models.llava_uhd.voco`).
        connector_type: connector of the model, from whose grid the number of placeholders follows.
        connector_options: options of the connector.
        encoder: fields of the configuration of an encoder of `foveate.models.encoders`, with its `model_type`; None:
            the vision tower is a ViT-UHD.

    Raises:
        FoveateError: there is no such connector, option or encoder, or the image processor cuts images into other
            squares than the encoder needs.

    Example:
        >>> content = [{"type": "image", "image": "sign.png"}, {"type": "text", "text": "Which date?"}]
        >>> inputs = processor.apply_chat_template(
        ...     [{"role": "user", "content": content}],
        ...     add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
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
        num_voco_tokens: int = 0,
        connector_type: str = "mlp",
        connector_options: dict[str, Any] | None = None,
        encoder: dict[str, Any] | None = None,
    ) -> None:
        self.connector_type = connector_type
        self.connector_options = connector_options
        self.connector = connector_of_sizes(connector_type, connector_options)
        self.encoder = encoder
        self.encoder_config = None if encoder is None else encoder_config_of(encoder)
        self.image_token = image_token
        self.num_voco_tokens = num_voco_tokens
        if tokenizer is not None and image_token not in tokenizer.get_vocab():
            tokenizer.add_tokens([image_token], special_tokens=True)
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        if self.encoder_config is not None and image_processor.unit != (unit := self.encoder_config.multiple):
            raise FoveateError(
                f"the encoder {self.encoder_config.model_type} needs images whose sides are multiples of {unit} "
                f"pixels: set patch_size {unit} and num_stages 0 of the image processor."
            )

    @property
    def nested_part(self) -> Connector | NestedEncoder:
        """What a plan chooses the length of; see `foveate.models.llava.lengths`."""
        return nested_part(self.connector, self.encoder_config)

    def encoder_grid(self, rows: int, columns: int, num_stages: int | None = None) -> Grid:
        """Rows and columns of the tokens that leave the vision tower, of an image of so many patches or squares.

        Args:
            rows: Of the image, as `grid_hws` has them.
            columns: The same.
            num_stages: of a ViT-UHD; default: that of the image processor.

        Raises:
            FoveateError: the encoder cannot read images of this size.
        """
        if self.encoder_config is not None:
            side = self.image_processor.patch_size
            return self.encoder_config.output_grid(rows * side, columns * side)
        stages = self.image_processor.num_stages if num_stages is None else num_stages
        return Grid(rows >> stages, columns >> stages)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any) -> "LlavaUHDProcessor":
        """Load the processor of a folder or Hub id, saved by `save_pretrained` or of the authors' layout.

        The authors' folders hold a tokenizer without the placeholder, which is added, and settings of an
        image processor or none; patch size and number of stages are those of the vision tower. None of the
        Python code that such a folder may hold is run.
        """
        where = {name: kwargs[name] for name in WHERE if name in kwargs}
        if not is_released(pretrained_model_name_or_path, **where):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        config = LlavaUHDConfig.from_pretrained(pretrained_model_name_or_path, **where)
        grid = {name: getattr(config.vision_config, name) for name in ("patch_size", "num_stages")}
        if file_of(pretrained_model_name_or_path, "preprocessor_config.json", **where) is not None:
            image_processor = LlavaUHDImageProcessor.from_pretrained(pretrained_model_name_or_path, **grid, **where)
        else:
            image_processor = LlavaUHDImageProcessor(**grid)
        tokenizer = AutoTokenizer.from_pretrained(
            pretrained_model_name_or_path, config=config.text_config, **where | DATA_ONLY
        )
        return cls(image_processor, tokenizer, chat_template=kwargs.get("chat_template"))

    def apply_chat_template(self, conversation: Any, chat_template: str | None = None, **kwargs: Any) -> Any:
        """As in `transformers`. Images are PIL images, paths, `data:` addresses or base64, under their names there."""
        return super().apply_chat_template(_read_base64(conversation), chat_template, **kwargs)

    def prepare_inputs_layout(self, images: Any = None, text: Any = None, **kwargs: Any) -> tuple[Any, ...]:
        """Open the images (see `foveate.images.open_image`), keeping how they are grouped.

        Addresses of the web are left to `transformers`, which downloads them.
        """
        return super().prepare_inputs_layout(images=_opened(images), text=text, **kwargs)

    def validate_inputs(self, images: Any = None, text: Any = None, **kwargs: Any) -> None:
        """Check that each prompt has as many placeholders as it has images.

        Raises:
            FoveateError: naming both counts, and the prompt where images came as one list for each prompt.
        """
        prompts = [text] if isinstance(text, str) else text or []
        if prompts and all(isinstance(prompt, str) for prompt in prompts):
            placeholders = [prompt.count(self.image_token) for prompt in prompts]
            given = _images_per_prompt(images)
            if len(given) != len(placeholders):  # a flat list, of all prompts
                placeholders, given = [sum(placeholders)], [sum(given)]
            for index, (found, count) in enumerate(zip(placeholders, given, strict=True)):
                if found != count:
                    where = f"prompt {index}" if len(placeholders) > 1 else "the text"
                    raise FoveateError(
                        f"{where} has {found} {self.image_token} placeholders, but {count} images came with it"
                    )
        super().validate_inputs(images=images, text=text, **kwargs)

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """The placeholders of one image, one for each token after the connector, and what comes after them."""
        rows, columns = (int(side) for side in image_inputs["grid_hws"][image_idx])
        grid = self.connector.output_grid(self.encoder_grid(rows, columns, kwargs.get("num_stages")))
        return self.image_token * grid.size + self.after_image

    @property
    def after_image(self) -> str:
        """What is written after the placeholders of every image: VoCo tokens, where the model reads through them."""
        return VOCO_TOKEN * self.num_voco_tokens

    def _get_num_multimodal_tokens(self, image_sizes: list[list[int]] | None = None, **kwargs: Any) -> MultiModalData:
        """Placeholders and patches of images of these sizes `(height, width)` in pixels, without the images.

        Servers call this name of `transformers` to plan memory.
        """
        if image_sizes is None:
            return MultiModalData()
        options = {name: value for name, value in kwargs.items() if value is not None}
        processor = self.image_processor
        grids = [processor.token_grid(width, height, **options) for height, width in image_sizes]
        if self.encoder_config is not None:  # a token of the image processor is a square
            grids = [self.encoder_grid(*grid) for grid in grids]
        return MultiModalData(
            num_image_tokens=[self.connector.output_grid(grid).size for grid in grids],
            num_image_patches=[
                processor.get_number_of_image_patches(height, width, options) for height, width in image_sizes
            ],
        )


def _opened(images: Any) -> Any:
    """Images of any kind as PIL images, lists as lists, a batched array as a list."""
    if images is None or (isinstance(images, str) and images.startswith(("http://", "https://"))):
        return images
    if isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4:
        return [_opened(image) for image in images]
    return open_written(images) if isinstance(images, str) else open_image(images)


def _read_base64(messages: Any) -> Any:
    """Messages, or a list of conversations, with PIL images in place of `{"type": "image", "base64": ...}`."""
    if isinstance(messages, (list, tuple)):
        return [_read_base64(message) for message in messages]
    if not isinstance(messages, dict) or not isinstance(messages.get("content"), (list, tuple)):
        return messages
    parts = [
        {
            **{name: value for name, value in part.items() if name != "base64"},
            "image": open_image(inline(part["base64"])),
        }
        if isinstance(part, dict) and part.get("type") == "image" and isinstance(part.get("base64"), str)
        else part
        for part in messages["content"]
    ]
    return {**messages, "content": parts}


def _images_per_prompt(images: Any) -> list[int]:
    """Number of images of each prompt, or of all prompts where they came as a flat list."""
    if images is None:
        return [0]
    if not isinstance(images, (list, tuple)):
        return [1]
    if any(isinstance(group, (list, tuple)) for group in images):
        return [len(group) if isinstance(group, (list, tuple)) else 1 for group in images]
    return [len(images)]
