"""Encode images under a plan, with their layouts and measurements."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foveate.core.connector import ConnectorMethod, RasterMethod
from foveate.core.errors import FoveateError
from foveate.core.image import ImageMethod, kept_positions
from foveate.core.plan import Plan
from foveate.core.tokens import Need, Selection
from foveate.families import Family, ImageLayout
from foveate.families.family import frame_crops, grid_crop, places_at_length
from foveate.runtime.probe import Probe
from foveate.runtime.raster_features import ProjectorInput, RasterReduction
from foveate.runtime.report import ImageReport
from foveate.runtime.vision_merging import Merging


@dataclass
class EncodedImages:
    """The images of one encoder call: layouts, measurements and selections."""

    layouts: list[ImageLayout]
    measured: list[dict[Need, Tensor]]
    encoder_id: int  # of the `ImageEncoder` that made the call
    end_features: tuple[Tensor, Tensor]  # (d,) the first and the last feature, which identify the output
    merged_selections: list[Selection] | None = None  # by merging inside the encoder
    prompt_ids: Tensor | None = None  # ids of the prompt of `selections`
    selections: list[tuple[Selection, ImageReport]] = field(default_factory=list)
    decisions: dict[tuple[int, int], Any] = field(
        default_factory=dict
    )  # inside the decoder, by image (below 0: by row) and layer

    def matches(self, output: Any) -> bool:
        """Whether an output is that of this call, possibly on another device or repeated for beams."""
        features = output.pooler_output
        return sum(map(len, features)) % sum(layout.count for layout in self.layouts) == 0 and all(
            torch.equal(feature, other.to(feature.device))
            for feature, other in zip(self.end_features, _end_features(features), strict=True)
        )

    def continues(self, ids: Tensor | None) -> bool:
        """Whether ids (B, L) continue the prompt of the selections.

        Without a cache `generate` passes the growing text through the model at every step. The selections for
        the prompt are kept, as with a cache.
        """
        prompt_ids = self.prompt_ids
        if prompt_ids is None or ids is None or len(prompt_ids) != len(ids) or prompt_ids.shape[1] >= ids.shape[1]:
            return False
        return torch.equal(ids[:, : prompt_ids.shape[1]], prompt_ids)


def _spread(count: int, frames: int) -> list[int]:
    """Tokens of every frame of a clip, `count` in all, as even as possible."""
    return [count * (frame + 1) // frames - count * frame // frames for frame in range(frames)]


def _end_features(features: Any) -> tuple[Tensor, Tensor]:
    """The first and the last feature (d,) of all images."""
    nonempty = [image for image in features if len(image)]
    return nonempty[0][0].detach().clone(), nonempty[-1][-1].detach().clone()


_numbers = itertools.count()


@dataclass
class ImageEncoder:
    """Encodes the images of a model under a plan, and records their layouts and measurements."""

    family: Family
    core: Any
    plan: Plan
    probe: Probe
    merging: Merging | None
    projector_input: ProjectorInput | None = None
    #: Outputs may be copied with their `EncodedImages`, so the encoder is identified by a number.
    encoder_id: int = field(default_factory=lambda: next(_numbers))

    def encode(
        self, modality: str, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> tuple[Any, EncodedImages | None]:
        """Call `original` (`get_image_features` or `get_video_features`) and measure meanwhile.

        Returns:
            Its output and the encoded images; None where the output is not one that this family's models read.
        """
        call = inspect.signature(original).bind(*args, **kwargs).arguments
        call = {**call, **call.pop("kwargs", {})}
        first = self.plan.steps[0].method if self.plan.steps else None
        if isinstance(first, ImageMethod):
            return self._encode_reduced(first, modality, original, call)
        if isinstance(first, RasterMethod) and not self.family.connectors:
            return self._encode_filtered(first, modality, original, call)
        if isinstance(first, ConnectorMethod):
            return self._encode_at_length(modality, original, call)
        with self.probe.encoding() as measurements:
            output = original(*args, **kwargs)
        if not hasattr(output, "pooler_output"):  # a tuple was requested, not by our callers
            return output, None
        layouts = self.family.layouts(self.core, modality, call, output)
        measured: list[dict[Need, Tensor]] = [{} for _ in layouts]
        for need, values in measurements.items():
            value = torch.cat(values)
            if need.kind == "cls_feature":
                for image, image_value in zip(measured, self.family.per_image(self.core, call, value), strict=True):
                    image[need] = image_value
                continue
            flat = value[:, None] if value.ndim == 1 else value
            for image, image_value in zip(
                measured, self.family.spread(self.core, modality, call, output, flat), strict=True
            ):
                image[need] = image_value[:, 0] if value.ndim == 1 else image_value
        merged_selections = None
        if self.merging is not None:
            merged_selections = self.family.merged(self.core, modality, call, self.merging.selections)
        return output, EncodedImages(
            layouts, measured, self.encoder_id, _end_features(output.pooler_output), merged_selections
        )

    def _encode_at_length(
        self, modality: str, original: Callable[..., Any], call: dict[str, Any]
    ) -> tuple[Any, EncodedImages]:
        """Encode with the connector at the length of the plan; its tokens are placed among zeros in the usual grid."""
        connector, budget = self.family.nested_part(self.core), self.plan.steps[0].budget
        grids = self.family.grids(self.core, modality, call)
        assert grids is not None and budget is not None  # families with connectors have grids, and budgets are checked
        counts = [budget.of(grid.size) for grid in grids]
        whole = counts == [grid.size for grid in grids]
        output = original(**call) if whole else original(**{**call, "budget": counts})
        features, layouts, selections = [], [], []
        for image, (grid, before, count) in enumerate(
            zip(grids, self.family.encoder_grids(self.core, call), counts, strict=True)
        ):
            tokens = output.pooler_output[image]
            at = torch.arange(count) if whole else places_at_length(connector, before, count)
            at = at.to(tokens.device)
            features.append(tokens.new_zeros(grid.size, tokens.shape[-1]).index_copy(0, at, tokens))
            layouts.append(ImageLayout(grid.size, grid_crop(*grid, at.device)))
            selections.append(Selection(at))
        output.pooler_output = features
        measured: list[dict[Need, Tensor]] = [{} for _ in layouts]
        return output, EncodedImages(layouts, measured, self.encoder_id, _end_features(features), selections)

    def _encode_filtered(
        self, method: RasterMethod, modality: str, original: Callable[..., Any], call: dict[str, Any]
    ) -> tuple[Any, EncodedImages | None]:
        """Encode with features mapped to smaller rasters; their tokens are placed among zeros in the usual layout."""
        budget = self.plan.steps[0].budget
        if self.projector_input is None:
            output = original(**call)
            if not hasattr(output, "pooler_output"):  # a tuple was requested, not by our callers
                return output, None
            layouts = self.family.layouts(self.core, modality, call, output)
            reductions = [RasterReduction.of(method, layout, budget) for layout in layouts]
            tokens = [
                reduction.filter(image) for reduction, image in zip(reductions, output.pooler_output, strict=True)
            ]
        else:
            grids = self.family.grids(self.core, modality, call)
            assert grids is not None and len(set(grids)) == 1  # images in one tensor have one size
            reduction = RasterReduction.of(method, ImageLayout(grids[0].size, grid_crop(*grids[0])), budget)
            with self.projector_input.mapped_by(reduction.filter):
                output = original(**call)
            if not hasattr(output, "pooler_output"):
                return output, None
            layouts = self.family.layouts(self.core, modality, call, output)
            reductions, tokens = [reduction] * len(layouts), list(output.pooler_output)
        features, selections = [], []
        for reduction, image, layout in zip(reductions, tokens, layouts, strict=True):
            placed, selection = reduction.place(image, layout.count)
            features.append(placed)
            selections.append(selection)
        output.pooler_output = features
        measured: list[dict[Need, Tensor]] = [{} for _ in layouts]
        return output, EncodedImages(layouts, measured, self.encoder_id, _end_features(features), selections)

    def _encode_reduced(
        self, method: ImageMethod, modality: str, original: Callable[..., Any], call: dict[str, Any]
    ) -> tuple[Any, EncodedImages]:
        """Encode downscaled images; their tokens are placed among zeros in a grid of the original size.

        All frames of a clip become equally small, and its tokens are spread evenly over them.
        """
        step = self.plan.steps[0]
        grids = self.family.grids(self.core, modality, call)
        if grids is None or step.budget is None:
            raise FoveateError(
                f"{method.name} reduces images that are one grid, and these are not; let their processor reduce them."
            )
        frames = self.family.frames(self.core, modality, call) or [1] * len(grids)
        counts = [_spread(step.budget.of(many * grid.size), many) for grid, many in zip(grids, frames, strict=True)]
        reduced_grids = [method.reduced_grid(grid, max(count)) for grid, count in zip(grids, counts, strict=True)]
        if reduced_grids == grids:
            output = original(**call)
        else:
            output = original(**self.family.shrink(self.core, modality, call, reduced_grids))
        planes = [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]
        features: list[list[Tensor]] = [[] for _ in planes]
        layouts, selections = [], []
        for image, (grid, reduced, count) in enumerate(zip(grids, reduced_grids, counts, strict=True)):
            device, size = planes[0][image].device, len(count) * grid.size
            kept = [kept_positions(grid, reduced, tokens) for tokens in count]
            rows = torch.cat([frame * reduced.size + rows for frame, (rows, _) in enumerate(kept)]).to(device)
            at = torch.cat([frame * grid.size + at for frame, (_, at) in enumerate(kept)]).to(device)
            for plane, image_planes in zip(planes, features, strict=True):
                image_features = plane[image]
                image_planes.append(
                    image_features.new_zeros(size, image_features.shape[-1]).index_copy(0, at, image_features[rows])
                )
            layouts.append(ImageLayout(size, frame_crops(len(count), *grid, device)))
            selections.append(Selection(at))
        # Models whose images have one size return one tensor.
        stacked = torch.is_tensor(output.pooler_output)
        output.pooler_output = torch.stack(features[0]) if stacked else features[0]
        if len(planes) > 1:
            output.deepstack_features = features[1:]
        measured: list[dict[Need, Tensor]] = [{} for _ in layouts]
        return output, EncodedImages(
            layouts, measured, self.encoder_id, _end_features(output.pooler_output), selections
        )
