"""`ViewImageProcessor`: from images to the views of a layout, as a `transformers` image processor."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, make_flat_list_of_images
from transformers.processing_utils import ImagesKwargs

from foveate.core.errors import FoveateError
from foveate.images import channel_axis, open_image
from foveate.models.llava.layouts import ViewLayout, fields_of_layout, layout_of_fields


class ViewImageProcessor(PilBackend):
    """Cuts every image into the views of a layout (`foveate.models.llava.layouts`).

    Calling it on one image, a list of images or nested lists of them returns a `BatchFeature`:

    - ``pixel_values``: float32 ``(n, 3, H, W)``, the views of all images one after the other, each at the top left and
      padded with zeros to the largest of the call; ``(n, parts, 3, H, W)`` where a view has several parts;
    - ``image_sizes``: int64 ``(n, 2)``, height and width of every view without the padding; where all have the same,
      they are left out;
    - ``image_grids``: int64 ``(images, 2)``, rows and columns of crops, where the layout has a grid of them after the
      whole image (`ViewLayout.crop_grid`);
    - ``original_sizes``: int64 ``(images, 2)``, height and width of every image, which processors count tokens from.

    Images may be anything that `foveate.images.open_image` reads. It needs no torchvision.

    Args:
        layout: A layout, or its fields: `name`, and options by name.
        **kwargs: `image_mean`, `image_std` and `rescale_factor`; the defaults are those of CLIP.

    Raises:
        FoveateError: There is no such layout or option.
    """

    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    valid_kwargs = ImagesKwargs
    model_input_names: ClassVar[list[str]] = ["pixel_values", "image_sizes", "image_grids"]

    def __init__(self, layout: ViewLayout | dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layout = fields_of_layout(layout if isinstance(layout, ViewLayout) else layout_of_fields(layout))

    @property
    def view_layout(self) -> ViewLayout:
        """The layout."""
        return layout_of_fields(self.layout)

    def _validate_preprocess_kwargs(self, **kwargs: Any) -> None:
        """Refuse options of other image processors, which would have no effect here."""
        for name in ("size", "crop_size", "pad_size", "do_center_crop", "do_pad"):
            if kwargs.get(name):
                raise FoveateError(f"{name} has no effect on views: the layout {self.layout['name']} sets their sizes.")
        if kwargs.get("resample") is not None:
            raise FoveateError(
                f"resample has no effect on views: the layout {self.layout['name']} resizes as its paper."
            )
        for name in ("do_resize", "do_rescale", "do_normalize"):
            if not kwargs.get(name):
                raise FoveateError(f"views are resized, rescaled and normalized: {name} cannot be switched off.")

    def _prepare_image_like_inputs(self, images: Any, *args: Any, **kwargs: Any) -> list[Image.Image]:
        flat: Any = make_flat_list_of_images(images)
        channels = channel_axis(kwargs.get("input_data_format"))
        opened = [open_image(image, channels=channels) for image in flat]
        if not opened:
            raise FoveateError("no image given: an empty list cannot be processed.")
        return opened

    def _preprocess(  # type: ignore[override]
        self,
        images: list[Image.Image],
        *,
        rescale_factor: float,
        image_mean: float | tuple[float, ...] | list[float],
        image_std: float | tuple[float, ...] | list[float],
        return_tensors: str | None,
        **kwargs: Any,
    ) -> BatchFeature:
        mean, std = (torch.as_tensor(value, dtype=torch.float32).view(-1, 1, 1) for value in (image_mean, image_std))

        def normalize(image: Image.Image) -> torch.Tensor:
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
            return (pixels * rescale_factor - mean) / std

        layout = self.view_layout
        views = [view for image in images for view in layout.cut(image, normalize)]
        sizes = torch.tensor([view.shape[-2:] for view in views])
        pixel_values = torch.zeros(len(views), 3, *sizes.amax(dim=0).tolist())
        for place, view in zip(pixel_values, views, strict=True):
            place[:, : view.shape[1], : view.shape[2]] = view
        if layout.parts > 1:
            pixel_values = pixel_values.unflatten(0, (-1, layout.parts))
        original_sizes = [(image.height, image.width) for image in images]
        grids = [grid for size in original_sizes if (grid := layout.crop_grid(*size)) is not None]
        features = {"pixel_values": pixel_values, "original_sizes": torch.tensor(original_sizes)}
        if not layout.one_size:
            features["image_sizes"] = sizes
        if grids:
            features["image_grids"] = torch.tensor(grids)
        return BatchFeature(features, tensor_type=return_tensors)
