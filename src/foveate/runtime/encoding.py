"""One call of an encoder: what it is of, and what was measured on the way."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.image import ImageMethod, kept_positions
from foveate.core.plan import Plan
from foveate.core.tokens import Need, Selection
from foveate.families import Family, ImageLayout
from foveate.families.family import grid_crop
from foveate.runtime.probe import Probe
from foveate.runtime.report import ImageReport
from foveate.runtime.vision_merging import Merging


@dataclass
class Encoded:
    """One call of an encoder: layouts and measurements of its images."""

    layouts: list[ImageLayout]
    measured: list[dict[Need, Tensor]]
    encoder: int  # the number of the `Encoder` that made the call
    ends: tuple[Tensor, Tensor]  # (d,) the first and the last feature, to know the output by
    merged: list[Selection] | None = None  # what merging inside the encoder left of every image
    prompt: Tensor | None = None  # ids of the prompt that was chosen for, and what was chosen
    chosen: list[tuple[Selection, ImageReport]] = field(default_factory=list)
    inside: dict[tuple[int, int], Any] = field(default_factory=dict)  # by image (below 0: by row) and decoder layer

    def is_of(self, output: Any) -> bool:
        """Whether an output is that of this call, perhaps moved to another device, or repeated for beams."""
        features = output.pooler_output
        return sum(map(len, features)) % sum(layout.count for layout in self.layouts) == 0 and all(
            torch.equal(own, other.to(own.device)) for own, other in zip(self.ends, _ends(features), strict=True)
        )

    def goes_on(self, ids: Tensor | None) -> bool:
        """Whether ids (B, L) are the prompt that was chosen for and something written after it.

        Without a cache `generate` passes the growing text through the model at every step. What a method chose for
        the prompt stays chosen, as it does with a cache.
        """
        before = self.prompt
        if before is None or ids is None or len(before) != len(ids) or before.shape[1] >= ids.shape[1]:
            return False
        return torch.equal(ids[:, : before.shape[1]], before)


def _ends(features: Any) -> tuple[Tensor, Tensor]:
    """The first and the last feature (d,) of all images."""
    filled = [own for own in features if len(own)]
    return filled[0][0].detach().clone(), filled[-1][-1].detach().clone()


_numbers = itertools.count()


@dataclass
class Encoder:
    """Encodes the images of a model under a plan."""

    family: Family
    core: Any
    plan: Plan
    probe: Probe
    merging: Merging | None
    #: Outputs are copied with what is known of them, so that it is a number by which they know who made them.
    number: int = field(default_factory=lambda: next(_numbers))

    def encode(
        self, modality: str, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> tuple[Any, Encoded | None]:
        """Call `original` (`get_image_features` or `get_video_features`) and measure while it works.

        Returns:
            Its output, and what is known of it; None where it is of another kind than this family's models read.
        """
        call = inspect.signature(original).bind(*args, **kwargs).arguments
        call = {**call, **call.pop("kwargs", {})}
        first = self.plan.steps[0].method
        if isinstance(first, ImageMethod):
            return self._encode_smaller(first, modality, original, call)
        with self.probe.encoding() as found:
            output = original(*args, **kwargs)
        if not hasattr(output, "pooler_output"):  # asked for a tuple: none of our callers
            return output, None
        layouts = self.family.layouts(self.core, modality, call, output)
        measured: list[dict[Need, Tensor]] = [{} for _ in layouts]
        for need, values in found.items():
            value = torch.cat(values)
            if need.kind == "cls_feature":
                for image, own in zip(measured, self.family.per_image(self.core, call, value), strict=True):
                    image[need] = own
                continue
            flat = value[:, None] if value.ndim == 1 else value
            for image, own in zip(measured, self.family.spread(self.core, modality, call, output, flat), strict=True):
                image[need] = own[:, 0] if value.ndim == 1 else own
        merged = None
        if self.merging is not None:
            merged = self.family.merged(self.core, modality, call, self.merging.selections)
        return output, Encoded(layouts, measured, self.number, _ends(output.pooler_output), merged)

    def _encode_smaller(
        self, method: ImageMethod, modality: str, original: Callable[..., Any], call: dict[str, Any]
    ) -> tuple[Any, Encoded]:
        """Encode reduced images; their tokens stand among zeros in a raster of the size that the prompt expects."""
        step = self.plan.steps[0]
        grids = self.family.grids(self.core, modality, call)
        if grids is None or step.budget is None:
            raise FoveateError(f"{method.name} reduces images that are one raster, and these are not.")
        counts = [step.budget.of(grid.size) for grid in grids]
        smaller = [method.reduced_grid(grid, count) for grid, count in zip(grids, counts, strict=True)]
        if smaller == grids:
            output = original(**call)
        else:
            output = original(**self.family.shrink(self.core, modality, call, smaller))
        planes = [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]
        features: list[list[Tensor]] = [[] for _ in planes]
        layouts, merged = [], []
        for image, (grid, small, count) in enumerate(zip(grids, smaller, counts, strict=True)):
            rows, at = (index.to(planes[0][image].device) for index in kept_positions(grid, small, count))
            for plane, spread in zip(planes, features, strict=True):
                own = plane[image]
                spread.append(own.new_zeros(grid.size, own.shape[-1]).index_copy(0, at, own[rows]))
            layouts.append(ImageLayout(grid.size, grid_crop(*grid, at.device)))
            merged.append(Selection(at))
        # Models whose images are all of one size hold them in one tensor.
        whole = torch.is_tensor(output.pooler_output)
        output.pooler_output = torch.stack(features[0]) if whole else features[0]
        if len(planes) > 1:
            output.deepstack_features = features[1:]
        nothing: list[dict[Need, Tensor]] = [{} for _ in layouts]
        return output, Encoded(layouts, nothing, self.number, _ends(output.pooler_output), merged)
