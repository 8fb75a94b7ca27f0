"""Number of visual tokens in every layer of the decoder under a plan.

    fastv:50%@2                  all in layers 0 and 1, half of them from layer 2 on
    pyramiddrop:50%@8,16,24      halved before layers 8, 16 and 24
    fastervlm:192 + fastv:50%@2  192 in layers 0 and 1, 96 from layer 2 on

Layers are counted from 0, so that `@k` leaves k layers as they were; without an @ a method acts where its paper says.
A budget at a layer is of the tokens that reach it. Only numbers matter here; which tokens stay is the method's matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from foveate.core.connector import ConnectorMethod, RasterMethod
from foveate.core.errors import FoveateError, Refusal
from foveate.core.image import ImageMethod
from foveate.core.in_attention import AttentionMethod
from foveate.core.in_decoder import DecoderMethod
from foveate.core.in_encoder import EncoderMethod
from foveate.core.method import Site
from foveate.core.plan import Plan, Step
from foveate.core.tokens import Grid
from foveate.cost.counted import CountedConnector, CountedEncoder
from foveate.cost.preprocessing import ProcessedImage
from foveate.cost.shapes import Model, Vision
from foveate.models.connectors.registry import connector_of_sizes


@dataclass(frozen=True)
class Run:
    """Token counts of an image under a plan.

    Args:
        image: The image as the encoder gets it; smaller than before where the plan reduces it.
        merges: Tokens that are merged away between attention and MLP of every block of the encoder.
        kept: Visual tokens that every layer of the decoder reads.
        projected: Tokens that the connector maps; None: all that leave the encoder.
        lengths: Of a nested connector, for every sequence of the encoder; None: its default.
    """

    image: ProcessedImage
    merges: tuple[int, ...]
    kept: tuple[int, ...]
    projected: int | None = None
    lengths: tuple[int, ...] | None = None


def tokens_per_layer(steps: Iterable[Step], tokens: int, layers: int) -> tuple[int, ...]:
    """Count the visual tokens in each layer.

    Args:
        steps: Steps before the decoder, whose budgets come first, and steps in it.
        tokens: Visual tokens before all of them.
        layers: Layers of the decoder.

    Raises:
        FoveateError: a step leaves its number to the method, acts at layers that the decoder lacks, or comes after a
            step that acts later.
    """
    at: dict[int, list[tuple[DecoderMethod, Step]]] = {}
    latest = -1
    for step in steps:
        method = step.method
        if step.budget is None and (method.budget != "none" or not method.static_count):
            raise FoveateError(
                Refusal(
                    "count-not-from-sizes",
                    f"how many tokens {method.name} keeps is not known from sizes",
                    "give it a budget",
                )
            )
        if not isinstance(method, DecoderMethod):
            if latest >= 0:
                raise FoveateError(
                    Refusal(
                        "wrong-order", f"{method.name} acts before the decoder", "it must come before what acts in it"
                    )
                )
            tokens = step.count(tokens) or tokens
            continue
        if isinstance(method, AttentionMethod):
            continue  # changes the attention mask; keeps every token
        acts = step.layers or method.layers(layers)
        if list(acts) != sorted(set(acts)) or acts[0] < latest:
            raise FoveateError(
                Refusal(
                    "wrong-order", f"the layers of {step} must grow, and none may come before those of earlier steps"
                )
            )
        if acts[-1] >= layers:
            raise FoveateError(
                Refusal(
                    "no-such-layer", f"{step} acts at layer {acts[-1]}", f"the decoder has layers 0 to {layers - 1}"
                )
            )
        latest = acts[-1]
        for layer in acts:
            at.setdefault(layer, []).append((method, step))
    kept = []
    for layer in range(layers):
        for method, step in at.get(layer, ()):
            tokens = method.remaining_tokens(tokens, step.count(tokens))
        kept.append(tokens)
    return tuple(kept)


def follow(plan: Plan | None, model: Model, processed: ProcessedImage) -> Run:
    """Apply a plan to the token counts of an image in a model.

    Args:
        plan: None is the full model.
        model: Its shape.
        processed: The image.

    Raises:
        FoveateError: the plan cannot be followed in such a model, or its numbers do not follow from sizes.
    """
    from foveate.families import families
    from foveate.families.family import check_connector
    from foveate.runtime.requirements import check_sites

    none = (0,) * (model.vision.blocks if model.vision else 0)
    if plan is None:
        return Run(processed, none, (processed.tokens,) * model.text.layers)
    if plan.frame_step is not None:
        what = f"{plan.frame_step} chooses frames of a clip, and tokens of an image are counted here"
        raise FoveateError(Refusal("chooses-frames", what, "leave it out"))
    before = plan.early_steps
    family = next((candidate for candidate in families().values() if model.kind in candidate.model_types), None)
    if before and family is not None:
        check_sites(Plan(before), family)
    first, steps, merges, projected, lengths = plan.steps[0], plan.steps, none, None, None
    method = first.method
    connector = model.connector if isinstance(model.connector, CountedConnector) else None
    if connector is not None:
        _check_counted(plan, model, connector)
        check_connector(connector.sizes, plan)
    if isinstance(method, ImageMethod):
        processed, steps = _reduced(model, processed, first, method), steps[1:]
    elif isinstance(method, ConnectorMethod) and connector is not None:
        lengths, steps = _lengths(model, connector, processed, first), steps[1:]
        processed = replace(processed, tokens=sum(lengths), raster=None)
    elif isinstance(method, RasterMethod) and family is not None and family.raster_features is not None:
        processed, steps = _filtered(processed, first, method), steps[1:]
        projected = processed.tokens if family.raster_features == "before-projector" else None
    elif isinstance(method, ConnectorMethod):
        check_connector(connector_of_sizes("mlp"), plan)  # the one that other models have, which no method chooses
    elif isinstance(method, EncoderMethod):
        if not isinstance(model.vision, Vision) or len(processed.grids) != 1:
            raise FoveateError(
                Refusal(
                    "needs-one-raster",
                    f"{method.name} is counted in models whose encoder has one sequence an image",
                )
            )
        merges, steps = _merges(model.vision, processed.grids[0], first, method), steps[1:]
        processed = ProcessedImage(processed.grids, processed.tokens - sum(merges))
    # Views of an image have budgets of their own; tiles of other models are one image.
    counts = lengths or _view_tokens(model, processed)
    kept = zip(*(tokens_per_layer(steps, tokens, model.text.layers) for tokens in counts), strict=True)
    return Run(processed, merges, tuple(map(sum, kept)), projected, lengths)


def _view_tokens(model: Model, processed: ProcessedImage) -> tuple[int, ...]:
    """Tokens of every view of an image that has several; those of the image otherwise."""
    connector = model.connector
    if len(processed.grids) == processed.parts or not isinstance(connector, CountedConnector) or model.vision is None:
        return (processed.tokens,)
    return tuple(connector.sizes.output_grid(model.vision.output_grid(grid)).size for grid in processed.grids)


def _lengths(model: Model, connector: CountedConnector, processed: ProcessedImage, step: Step) -> tuple[int, ...]:
    """Lengths of a nested connector for every view."""
    assert model.vision is not None
    features = (model.vision.output_grid(grid) for grid in processed.grids)
    wanted = (step.count(tokens) for tokens in _view_tokens(model, processed))
    return tuple(connector.sizes.output_grid(grid, length).size for grid, length in zip(features, wanted, strict=True))


def _check_counted(plan: Plan, model: Model, connector: CountedConnector) -> None:
    """Refuse a plan that cannot be attached to a model with this encoder and this connector."""
    method = plan.steps[0].method
    if connector.sizes.prefusion_layers:
        raise FoveateError(
            Refusal(
                "needs-uncompressed-encoder",
                f"text reads the patches in {connector.sizes.prefusion_layers} layers before the language model, and "
                f"'{plan}' cannot be attached to such a model",
            )
        )
    if isinstance(model.vision, CountedEncoder) and method.site in (Site.IMAGE, Site.ENCODER):
        raise FoveateError(
            Refusal(
                "needs-plain-encoder",
                f"{method.name} acts on the encoder, and {model.vision.config.model_type} is not built as CLIP and "
                "SigLIP are",
                "choose a method that acts after the connector, such as divprune",
            )
        )


def _reduced(model: Model, processed: ProcessedImage, step: Step, method: ImageMethod) -> ProcessedImage:
    """Shrink the image to the budget; tokens beyond the budget are dropped."""
    from foveate.families.family import grid_before

    if processed.raster is None:
        raise FoveateError(
            Refusal("needs-one-raster", f"{method.name} is counted where one sequence makes all tokens of an image")
        )
    count = step.count(processed.tokens) or processed.tokens
    small = method.reduced_grid(processed.raster, count)
    features = processed.raster
    if isinstance(model.connector, CountedConnector) and model.vision is not None:
        features, small = model.vision.output_grid(processed.grids[0]), grid_before(model.connector.sizes, small)
    side = processed.grids[0].rows // features.rows
    return ProcessedImage((Grid(small.rows * side, small.columns * side),), count)


def _filtered(processed: ProcessedImage, step: Step, method: RasterMethod) -> ProcessedImage:
    """The same image in the encoder, with the tokens of a smaller raster after it."""
    if processed.raster is None:
        raise FoveateError(
            Refusal("needs-one-raster", f"{method.name} is counted where one sequence makes all tokens of an image")
        )
    count = step.count(processed.tokens) or method.reduced_grid(processed.raster, None).size
    return ProcessedImage(processed.grids, count)


def _merges(vision: Vision, grid: Grid, step: Step, method: EncoderMethod) -> tuple[int, ...]:
    """Tokens that every block merges away."""
    blocks = vision.output + 1 if vision.output >= 0 else vision.blocks
    amounts = method.amounts(grid.size, blocks, bool(vision.cls), step.count(grid.size))
    return (*amounts, *(0,) * (vision.blocks - blocks))
