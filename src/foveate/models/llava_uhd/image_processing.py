"""`LlavaUHDImageProcessor`: from images of any size to packed patches, as a `transformers` image processor.

Every image is resized on its own by the native-resolution rule (`foveate.models.llava_uhd.native_size`), normalised and
cut into patches; the patches of all images of the call lie one image after the other in a single tensor, so nothing is
padded. It builds on the Pillow backend of `transformers` and needs no torchvision.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import ImagesKwargs

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.images import channel_axis, open_image
from foveate.models.llava_uhd.native_size import native_size, unit_size

#: Enlargement that the authors' ``allow_upscale=True`` stands for.
RELEASED_UPSCALE_FACTOR = 1.4


class LlavaUHDImagesKwargs(ImagesKwargs, total=False):
    """Options of one call, on top of those of every `transformers` image processor; defaults are the processor's own.

    patch_size (`int`): side of a patch in pixels.
    num_stages (`int`): number of 2 x 2 compression stages of the encoder; sides are multiples of
        ``patch_size * 2**num_stages``.
    scale_resolution (`int`): budget side R in pixels; no image keeps more than R * R pixels.
    min_resolution (`int`, *optional*): floor side in pixels; `None` never enlarges a small image.
    max_edge (`int`): longest side in pixels.
    upscale_factor (`float`, *optional*): enlarge images within the budget by this factor first.
    token_multiple (`int`): sides are multiples of so many tokens of the encoder, for connectors that merge squares.
    """

    patch_size: int | None
    num_stages: int | None
    scale_resolution: int | None
    min_resolution: int | None
    max_edge: int | None
    upscale_factor: float | None
    token_multiple: int | None


class LlavaUHDImageProcessor(PilBackend):
    """Image processor of LLaVA-UHD v3: native resolution, one view an image, packed patches.

    Calling it on one image, a list of images or nested lists of them (one list a sample) returns a `BatchFeature`:

    - ``pixel_values``: float32 ``(L, C, p, p)``, the patches of all images one image after the other, row by row;
    - ``grid_hws``: int64 ``(n, 2)``, rows and columns of patches of each image, before any compression stage.

    Images may be anything that `foveate.images.open_image` reads. The size rule is that of
    `foveate.models.llava_uhd.native_size.native_size`, and each of its settings can be given per call too. The defaults
    are the released configuration of LLaVA-UHD v3. `trained_size`, the longer side in pixels of the images that the
    model was trained on, and `trained_text_height`, the height of the smallest capitals in them, change no image: `ask`
    warns where an image is larger, or its text smaller. With ``do_resize=False`` the sides of every image must already
    be multiples of the unit; anything else is refused, never cropped.
    """

    do_convert_rgb = True
    do_resize = True
    resample = PILImageResampling.BICUBIC
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = (0.5, 0.5, 0.5)
    image_std = (0.5, 0.5, 0.5)
    patch_size = 10
    num_stages = 2
    scale_resolution = 1560
    min_resolution = 512
    max_edge = 5120
    upscale_factor = None
    token_multiple = 1
    trained_size: int | None = None
    trained_text_height: float | None = None
    valid_kwargs = LlavaUHDImagesKwargs
    model_input_names: ClassVar[list[str]] = ["pixel_values", "grid_hws"]

    def __init__(self, **kwargs: Any) -> None:
        # The released preprocessor configuration: `any_res` selects this rule, `allow_upscale` stands for a factor.
        if kwargs.pop("any_res", True) is False:
            raise FoveateError(
                "any_res=False asks for sliced views, and this image processor makes one native view only."
            )
        if kwargs.pop("allow_upscale", False):
            kwargs.setdefault("upscale_factor", RELEASED_UPSCALE_FACTOR)
        super().__init__(**kwargs)
        # The base class takes None for "not given"; here it means "no floor" and must survive saving and loading.
        if "min_resolution" in kwargs:
            self.min_resolution = kwargs["min_resolution"]
        native_size(1, 1, **self._size_rule({}))  # refuse settings that no image could satisfy

    @property
    def unit(self) -> int:
        """Side in pixels of the square that one token of the encoder's output stands for."""
        return unit_size(self.patch_size, self.num_stages)

    def target_size(self, width: int, height: int, **overrides: Any) -> tuple[int, int]:
        """Size ``(width, height)`` in pixels to which an image of ``width`` x ``height`` pixels is resized."""
        return native_size(width, height, **self._size_rule(overrides))

    def num_tokens(self, width: int, height: int, **overrides: Any) -> int:
        """Tokens of the encoder for an image of ``width`` x ``height`` pixels, from its size alone."""
        return self.token_grid(width, height, **overrides).size

    def token_grid(self, width: int, height: int, **overrides: Any) -> Grid:
        """Rows and columns of the tokens of the encoder for an image of ``width`` x ``height`` pixels."""
        rule = self._size_rule(overrides)
        columns, rows = native_size(width, height, **rule)
        unit = unit_size(rule["patch_size"], rule["num_stages"])
        return Grid(rows // unit, columns // unit)

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict[str, Any] | None = None) -> int:
        """Patches of an image of ``height`` x ``width`` pixels before any compression (the name that servers call)."""
        rule = self._size_rule(images_kwargs or {})
        columns, rows = native_size(width, height, **rule)
        return columns * rows // rule["patch_size"] ** 2

    def __call__(self, images: Any = None, *args: Any, videos: Any = None, **kwargs: Any) -> BatchFeature:
        """Process one image, a list of images or nested lists of them; see the class for what is returned.

        Raises:
            FoveateError: there is no image, one cannot be read, a video is given, or a setting cannot be met.
        """
        if videos is not None:
            raise FoveateError("this image processor takes images only: cut a video into frames and give those.")
        return super().__call__(images, *args, **kwargs)

    def _validate_preprocess_kwargs(self, **kwargs: Any) -> None:
        """Refuse the options of other image processors, which would have no effect here, and check the rest."""
        for name in ("size", "crop_size", "pad_size", "do_center_crop", "do_pad"):
            if kwargs.get(name):
                raise FoveateError(
                    f"{name}={kwargs[name]!r} has no meaning at native resolution: images are neither cropped nor "
                    "padded, and scale_resolution, min_resolution, max_edge and upscale_factor set their size."
                )
        if kwargs.get("do_resize") and kwargs.get("resample") is None:
            raise FoveateError("do_resize=True needs a filter: resample is None; the released model uses bicubic (3).")
        if kwargs.get("do_rescale") and kwargs.get("rescale_factor") is None:
            raise FoveateError("do_rescale=True needs rescale_factor, which is None.")
        if kwargs.get("do_normalize") and (kwargs.get("image_mean") is None or kwargs.get("image_std") is None):
            raise FoveateError("do_normalize=True needs image_mean and image_std.")

    def _size_rule(self, overrides: dict[str, Any]) -> dict[str, Any]:
        """The settings of `native_size`: this processor's own, and those of a call over them."""
        names = (
            "patch_size", "num_stages", "scale_resolution", "min_resolution", "max_edge", "upscale_factor",
            "token_multiple",
        )  # fmt: skip
        return {name: overrides.get(name, getattr(self, name)) for name in names}

    def _prepare_image_like_inputs(
        self,
        images: Any,
        *args: Any,
        **kwargs: Any,
    ) -> list[Image.Image]:
        channels = channel_axis(kwargs.get("input_data_format"))
        opened = [open_image(image, channels=channels) for image in _flat(images)]
        if not opened:
            raise FoveateError("no image given: an empty list cannot be processed.")
        return opened

    def _preprocess(  # type: ignore[override]
        self,
        images: list[Image.Image],
        *,
        do_resize: bool,
        resample: int,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | tuple[float, ...] | list[float],
        image_std: float | tuple[float, ...] | list[float],
        return_tensors: str | None,
        **kwargs: Any,
    ) -> BatchFeature:
        rule = self._size_rule(kwargs)
        patch = rule["patch_size"]
        unit = unit_size(patch, rule["num_stages"]) * rule["token_multiple"]
        merged = f", token_multiple={rule['token_multiple']}" if rule["token_multiple"] != 1 else ""
        sizes = [native_size(*image.size, **rule) if do_resize else image.size for image in images]
        for width, height in sizes:
            if width % unit or height % unit:
                raise FoveateError(
                    f"with do_resize=False both sides of an image must be multiples of the unit, {unit} pixels "
                    f"(patch_size={patch} and {rule['num_stages']} stages{merged}); this one is {width} x {height}."
                )
        scale, shift = affine(
            rescale_factor if do_rescale else 1.0,
            image_mean if do_normalize else 0.0,
            image_std if do_normalize else 1.0,
        )
        grids = torch.tensor([(height // patch, width // patch) for width, height in sizes], dtype=torch.long)
        counts = grids.prod(dim=1).tolist()
        pixel_values = torch.empty(sum(counts), 3, patch, patch)
        for image, size, packed in zip(images, sizes, pixel_values.split(counts), strict=True):
            if image.size != size:
                image = image.resize(size, Image.Resampling(resample))
            write_patches(np.asarray(image), packed, scale, shift)
        return BatchFeature({"pixel_values": pixel_values, "grid_hws": grids}, tensor_type=return_tensors)


def affine(
    rescale_factor: float, mean: float | tuple[float, ...] | list[float], std: float | tuple[float, ...] | list[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rescaling and normalising as one ``x * scale + shift`` per channel, each ``(3,)`` float32, fused in float64."""
    means, stds = (torch.tensor(value, dtype=torch.float64).expand(3) for value in (mean, std))
    if not bool((stds > 0).all()):
        raise FoveateError(f"image_std must be positive, got {stds.tolist()}.")
    return (rescale_factor / stds).float(), (-means / stds).float()


def write_patches(pixels: np.ndarray, packed: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> None:
    """Write the patches of one image ``(H, W, 3)`` of 8 bits into ``packed (h * w, 3, p, p)``, normalised.

    Row-major: patch ``i * w + j`` is at row ``i``, column ``j`` of the grid.
    """
    patch = packed.shape[-1]
    rows, columns = pixels.shape[0] // patch, pixels.shape[1] // patch
    grid = torch.from_numpy(np.array(pixels)).view(rows, patch, columns, patch, 3)
    packed.view(rows, columns, 3, patch, patch).copy_(grid.permute(0, 2, 4, 1, 3))
    packed.mul_(scale.view(3, 1, 1)).add_(shift.view(3, 1, 1))


def _flat(images: Any, depth: int = 0) -> Iterator[Any]:
    """The images of nested lists, and of arrays with a batch axis, in order."""
    if images is None:
        raise FoveateError("no image given.")
    if isinstance(images, (list, tuple)):
        if depth > 2:
            raise FoveateError("images are nested too deeply: give an image, a list of them, or a list of lists.")
        for image in images:
            yield from _flat(image, depth + 1)
    elif getattr(images, "ndim", 0) == 4:
        yield from images
    elif getattr(images, "ndim", 0) > 4:
        raise FoveateError(
            f"an array of shape {tuple(images.shape)} looks like a video, and this processor takes images only."
        )
    else:
        yield images
