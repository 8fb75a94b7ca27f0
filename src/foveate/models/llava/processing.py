"""Processor of LLaVA with any connector: prompts and images in, model inputs out."""

import dataclasses
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from transformers import AutoImageProcessor, AutoTokenizer, LlavaProcessor, PreTrainedConfig
from transformers.image_utils import get_image_size, to_numpy_array
from transformers.processing_utils import MultiModalData

from foveate.core.errors import FoveateError
from foveate.core.text_files import read_json
from foveate.core.tokens import Grid, encoder_grid
from foveate.core.weights import DATA_ONLY, WHERE, file_of
from foveate.models.connectors.connector import Connector
from foveate.models.connectors.registry import check_same_connector, connector_of_sizes
from foveate.models.encoders import EncoderConfig, encoder_named
from foveate.models.llava.configuration import FoveateLlavaConfig
from foveate.models.llava.conversion import LLAMA_3_VOCABULARY, is_released
from foveate.models.llava.image_processing import ViewImageProcessor
from foveate.models.llava.layouts import LlavaMiniLayout, PadLayout, View, ViewLayout, released_layout
from foveate.models.llava.layouts.squares import mean_colour
from foveate.models.llava.lengths import NestedEncoder, nested_part

#: Turns of Vicuna, as LLaVA-1.5 was trained with, for released checkpoints, which have no template of their own.
VICUNA_TEMPLATE = """{%- for message in messages -%}
{%- if message['role'] == 'assistant' %}{{ 'ASSISTANT: ' }}{% endif -%}
{%- if message['role'] == 'user' %}{{ 'USER: ' }}{% endif -%}
{%- if message['content'] is string %}{{ message['content'] }}{% else -%}
{%- for part in message['content'] if part['type'] == 'image' %}{{ 'IMAGE_TOKEN' + '\n' }}{% endfor -%}
{%- for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor -%}
{%- endif -%}
{{ '</s>' if message['role'] == 'assistant' else ' ' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif -%}"""

#: Turns of Llama 3.1, as LLaVA-Mini was trained with; the tokenizer writes the token of the beginning.
LLAMA_3_TEMPLATE = """{{- '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n' -}}
{{- 'Today Date: 26 Jul 2024\n\nYou are a helpful language and vision assistant. You are able to understand the ' -}}
{{- 'visual content that the user provides, and assist the user with a variety of tasks using natural language.' -}}
{{- '<|eot_id|>' -}}
{%- for message in messages -%}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' -}}
{%- if message['content'] is string %}{{ message['content'] }}{% else -%}
{%- for part in message['content'] if part['type'] == 'image' %}{{ 'IMAGE_TOKEN' + '\n' }}{% endfor -%}
{%- for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor -%}
{%- endif -%}
{{- '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif -%}"""

#: Turns of Qwen, as Oryx was trained with.
CHATML_TEMPLATE = """{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string %}{{ message['content'] }}{% else -%}
{%- for part in message['content'] if part['type'] == 'image' %}{{ 'IMAGE_TOKEN' + '\\n' }}{% endfor -%}
{%- for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}"""


class FoveateLlavaProcessor(LlavaProcessor):
    """`LlavaProcessor` whose number of placeholders is that of the connector's tokens.

    Args:
        image_processor: An image processor of CLIP or SigLIP, also for other encoders; or a `ViewImageProcessor`, for
            images as several views, with text between their tokens.
        tokenizer: The tokenizer of the language model, with the placeholder in its vocabulary.
        patch_size: Of a vision tower that gives one token per patch.
        vision_feature_select_strategy: As in the model's configuration.
        chat_template: A Jinja template.
        image_token: The placeholder.
        num_additional_image_tokens: Tokens of the tower besides the patches: 1 for [CLS] of CLIP.
        connector_type: The connector of the model.
        connector_options: Its options.
        encoder: Fields of the configuration of an encoder of `foveate.models.encoders`, with its `model_type`; None:
            the vision tower is CLIP or SigLIP.

    Raises:
        FoveateError: There is no such connector, option or encoder, or the layout of views has another size of patches
            or text that the tokenizer does not write as one token.
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
        connector_type: str = "mlp",
        connector_options: dict[str, Any] | None = None,
        encoder: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.connector_type = connector_type
        self.connector_options = connector_options
        self.connector = connector_of_sizes(connector_type, connector_options)
        self.encoder = encoder
        self.encoder_config = None if encoder is None else encoder_config_of(encoder)
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
        if self.layout is not None:
            _check_layout(self.layout, self)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any) -> Any:
        """Load the processor of a folder or Hub id, saved by `save_pretrained` or of the authors' layout.

        The authors' folders hold a tokenizer, and an image processor or none; the settings of CLIP apply then.
        """
        where = {name: kwargs[name] for name in WHERE if name in kwargs}
        if not is_released(pretrained_model_name_or_path, **where):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        config: Any = FoveateLlavaConfig.from_pretrained(pretrained_model_name_or_path, **where)
        vision = config.vision_config
        fields = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **where)[0]
        layout = released_layout(fields, vision.image_size, vision.patch_size)
        # Text between views must be the same tokens as elsewhere: older Llama tokenizers put a space before it.
        spaces = {"legacy": False} if layout is not None and layout.texts else {}
        tokenizer: Any = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **where | DATA_ONLY, **spaces)
        if layout is not None and layout.special_tokens:
            token = _add_tokens(tokenizer, config.image_token_id, layout.special_tokens)
        else:
            token = getattr(tokenizer, "image_token", None) or tokenizer.convert_ids_to_tokens(config.image_token_id)
        if layout is not None:
            image_processor: Any = _view_processor(layout, vision, pretrained_model_name_or_path, where)
        elif file_of(pretrained_model_name_or_path, "preprocessor_config.json", **where) is not None:
            image_processor = AutoImageProcessor.from_pretrained(pretrained_model_name_or_path, **where | DATA_ONLY)
        else:
            from transformers import CLIPImageProcessor  # says that torchvision is missing when it is imported

            side = config.vision_config.image_size
            image_processor = CLIPImageProcessor(
                size={"shortest_edge": side}, crop_size={"height": side, "width": side}
            )
        strategy = config.vision_feature_select_strategy
        return cls(
            image_processor,
            tokenizer,
            patch_size=config.vision_config.patch_size,
            vision_feature_select_strategy=strategy,
            chat_template=kwargs.get("chat_template") or _template(fields).replace("IMAGE_TOKEN", token),
            image_token=token,
            num_additional_image_tokens=int(strategy == "default"),
            connector_type=config.connector_type,
            connector_options=config.connector_options,
            **encoder_fields(config.vision_config),
        )

    @property
    def nested_part(self) -> Connector | NestedEncoder:
        """What a plan chooses the length of; see `foveate.models.llava.lengths`."""
        return nested_part(self.connector, self.encoder_config)

    @property
    def layout(self) -> ViewLayout | None:
        """The layout of views; None: an image is one view."""
        processor = self.image_processor
        return processor.view_layout if isinstance(processor, ViewImageProcessor) else None

    @property
    def unused_input_names(self) -> list[str]:
        """What the image processor returns for this processor alone."""
        return ["original_sizes"]

    def views_of(self, height: int, width: int) -> tuple[View, ...]:
        """Views of an image of this size in pixels, in the order of the prompt; empty: an image is one view."""
        return () if self.layout is None else self.layout.views(height, width)

    def text_of(self, height: int, width: int) -> str:
        """Placeholders of the views of an image of this size in pixels, with the text between them and their rows."""
        text = ""
        for view in self.views_of(height, width):
            rows, columns = self.token_grid(view.height, view.width)
            text += view.prefix + (self.image_token * columns + view.row_end) * rows + view.separator
        return text

    def tokens_of(self, height: int, width: int) -> int:
        """Tokens of an image or view of this size in pixels, as the image processor returns it."""
        return self.token_grid(height, width).size

    def token_grid(self, height: int, width: int) -> Grid:
        """Rows and columns of the tokens of an image or view of this size in pixels."""
        return self.connector.output_grid(self.encoder_grid(height, width))

    def encoder_grid(self, height: int, width: int) -> Grid:
        """Rows and columns of the tokens that the connector reads, of an image of this size in pixels."""
        return encoder_grid(self if self.encoder_config is None else self.encoder_config, height, width)

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """The placeholders of one image, one for each token after the connector; of views with the text between."""
        if self.layout is not None:
            return self.text_of(*map(int, image_inputs["original_sizes"][image_idx]))
        height, width = get_image_size(to_numpy_array(image_inputs["pixel_values"][image_idx]))
        return self.image_token * self.tokens_of(height, width)

    def _get_num_multimodal_tokens(self, image_sizes: list[list[int]] | None = None, **kwargs: Any) -> MultiModalData:
        """Placeholders of images of these sizes `(height, width)` in pixels, without the images.

        Servers call this name of `transformers` to plan memory. Text between views is not counted.
        """
        if image_sizes is None:
            return MultiModalData()
        if self.layout is not None:
            views = [self.views_of(height, width) for height, width in image_sizes]
            counts = [sum(self.tokens_of(view.height, view.width) for view in of_image) for of_image in views]
            return MultiModalData(num_image_tokens=counts, num_image_patches=[len(of_image) for of_image in views])
        size = self._image_size({**kwargs.get("images_kwargs", {}), **kwargs})
        count = self.tokens_of(size["height"], size["width"])
        return MultiModalData(num_image_tokens=[count] * len(image_sizes), num_image_patches=[1] * len(image_sizes))

    def _image_size(self, options: Mapping[str, Any] | None = None) -> Any:
        """Height and width of every image that the image processor returns: SigLIP's does not crop.

        Args:
            options: Of the image processor in one call.
        """
        if self.layout is not None:
            return {"height": self.layout.side, "width": self.layout.side}
        given = {name: value for name, value in (options or {}).items() if value is not None}
        cropped = given.get("do_center_crop", getattr(self.image_processor, "do_center_crop", False))
        name = "crop_size" if cropped else "size"
        size = given.get(name) or getattr(self.image_processor, name)
        if isinstance(size, int):
            size = {"height": size, "width": size} if cropped else {"shortest_edge": size}
        if getattr(size, "height", None) is None and "height" not in dict(size):
            raise FoveateError(f"the image processor gives images of no fixed size ({dict(size)}).")
        return dict(size)


def pair(model: Any, processor: FoveateLlavaProcessor) -> None:
    """Make a model take the processor's placeholder, and check that both agree in the connector and the patches.

    Raises:
        FoveateError: They do not, or the model's vocabulary lacks the placeholder.
    """
    check_same_connector(model.config, processor)
    vision = model.config.vision_config
    if isinstance(vision, EncoderConfig):
        _check_same_encoder(vision, processor)
    elif processor.encoder_config is not None:
        raise FoveateError(
            f"the processor counts the tokens of the encoder {processor.encoder_config.model_type}, and the model has "
            f"{vision.model_type}."
        )
    elif processor.patch_size != (patch := vision.patch_size):
        raise FoveateError(f"the processor has patch_size {processor.patch_size}, but the vision tower has {patch}.")
    vocabulary = model.config.text_config.vocab_size
    if processor.image_token_id >= vocabulary:
        raise FoveateError(
            f"the placeholder {processor.image_token!r} has the id {processor.image_token_id}, which the model's "
            f"vocabulary (0 to {vocabulary - 1}) lacks: resize_token_embeddings first."
        )
    model.config.image_token_id = processor.image_token_id


def _template(config: dict[str, Any]) -> str:
    """The chat template that models of this released `config.json` were trained with."""
    if config["model_type"].startswith("oryx"):
        return CHATML_TEMPLATE
    return LLAMA_3_TEMPLATE if config.get("vocab_size", 0) >= LLAMA_3_VOCABULARY else VICUNA_TEMPLATE


def _view_processor(
    layout: ViewLayout, vision: Any, location: str | PathLike[str], where: dict[str, Any]
) -> ViewImageProcessor:
    """The image processor of a released model whose images are views.

    Pixels are normalized as `preprocessor_config.json` says, as the encoder's authors do, or as for CLIP; parts of a
    square without image have the mean colour.
    """
    normalization = dict(getattr(vision, "released_normalization", {}))
    if (path := file_of(location, "preprocessor_config.json", **where)) is not None:
        fields = read_json(path)
        normalization = {name: fields[name] for name in ("image_mean", "image_std") if name in fields}
    if isinstance(layout, (PadLayout, LlavaMiniLayout)) and "image_mean" in normalization:
        layout = dataclasses.replace(layout, background=mean_colour(normalization["image_mean"]))
    return ViewImageProcessor(layout, **normalization)


def _add_tokens(tokenizer: Any, first: int, names: Sequence[str], placeholder: str = "<image>") -> str:
    """Add a placeholder with the id `first`, and tokens after it; returns the placeholder.

    Ids that the tokenizer lacks before it, those of rows that no token has, get names that no text has.

    Raises:
        FoveateError: It has these ids or names already.
    """
    added = [placeholder, *names]
    tokenizer.add_tokens([f"<|unused_{number}|>" for number in range(len(tokenizer), first)], special_tokens=True)
    tokenizer.add_tokens(added, special_tokens=True)
    if tokenizer.convert_tokens_to_ids(added) != list(range(first, first + len(added))):
        raise FoveateError(
            f"the tokenizer must have at most {first} tokens, and none of {', '.join(added)}: they are added to it."
        )
    return placeholder


def _check_layout(layout: ViewLayout, processor: FoveateLlavaProcessor) -> None:
    """Check that views are multiples of the patch, and that every text between their tokens is one token.

    Raises:
        FoveateError: They are not, or the model fuses text with images, which must have one size then.
    """
    if processor.connector.prefusion_layers and not layout.one_size:
        raise FoveateError(
            f"the connector {processor.connector_type} fuses text with images, which cannot be views of several sizes: "
            f"the layout {layout.name} has them."
        )
    if layout.parts > 1 and not processor.connector.prefusion_layers:
        raise FoveateError(
            f"the layout {layout.name} has sub-images, which the connector llava_mini reads, and not "
            f"{processor.connector_type}."
        )
    if layout.patch_size != processor.patch_size and processor.encoder is None:
        raise FoveateError(
            f"the layout {layout.name} has patch_size {layout.patch_size}, and the processor has "
            f"{processor.patch_size}."
        )
    tokenizer, image = processor.tokenizer, processor.image_token
    for text in layout.texts:
        ids = tokenizer.encode(f"{image}{text}{image}", add_special_tokens=False)
        if len(ids) != 3 or tokenizer.decode(ids[1]) != text:
            if text in layout.special_tokens:
                raise FoveateError(
                    f"the layout {layout.name} needs the special tokens {', '.join(layout.special_tokens)}, and the "
                    f"tokenizer lacks {text}: add them with add_tokens(..., special_tokens=True), and rows to the "
                    "model with resize_token_embeddings."
                )
            raise FoveateError(
                f"the layout {layout.name} has {text!r} between views, which the tokenizer writes as the tokens "
                f"{tokenizer.convert_ids_to_tokens(ids[1:-1])} there: load a Llama tokenizer with legacy=False."
            )


def encoder_fields(config: Any) -> dict[str, Any]:
    """The field of a processor that names the vision tower, empty for towers that give one token per patch."""
    if not isinstance(config, EncoderConfig):
        return {}
    fields = {name: value for name, value in config.to_diff_dict().items() if name in vars(type(config)())}
    for name in ("transformers_version", "architectures", "dtype"):
        fields.pop(name, None)
    return {"encoder": fields | {"model_type": config.model_type}}


def encoder_config_of(fields: dict[str, Any]) -> EncoderConfig:
    """The configuration of an encoder.

    Raises:
        FoveateError: There is no such encoder, or a field has an impossible value.
    """
    fields = dict(fields)
    config_class: Any = encoder_named(fields.pop("model_type", None)).config_class
    return config_class(**fields)


def _check_same_encoder(vision: EncoderConfig, processor: FoveateLlavaProcessor) -> None:
    """Check that a processor counts the tokens of an encoder.

    Raises:
        FoveateError: It counts those of another one, or of a tower with one token per patch.
    """
    kind = None if processor.encoder_config is None else processor.encoder_config.model_type
    if kind != vision.model_type:
        counted = f"the encoder {kind}" if kind else "a tower with one token per patch"
        raise FoveateError(f"the processor counts the tokens of {counted}, and the model has {vision.model_type}.")
    size = processor._image_size()
    height, width = size["height"], size["width"]
    ours, theirs = vision.output_grid(height, width), processor.encoder_grid(height, width)
    if ours != theirs:
        raise FoveateError(
            f"the processor counts {theirs.rows} x {theirs.columns} tokens of the encoder {kind}, and the model has "
            f"{ours.rows} x {ours.columns}."
        )
