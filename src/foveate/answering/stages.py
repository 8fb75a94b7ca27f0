"""Image token counts from patches to the language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foveate.answering.conversations import placeholders
from foveate.answering.trace import Trace
from foveate.core.plan import Plan
from foveate.models.connectors import Connector
from foveate.models.vit_uhd import ViTUHDConfig, ViTUHDModel
from foveate.runtime.report import ImageReport

#: What a step of a plan does to tokens, by its site.
DOINGS = {
    "pre_llm": "chosen before the language model",
    "encoder": "merged inside the encoder",
    "image": "made from a smaller image",
    "connector": "made by the connector at this length",
}


@dataclass(frozen=True)
class Stage:
    """Image tokens at one point of the model.

    Attributes:
        name: such as ``"patches"`` or ``"stage 1"``.
        grid: rows and columns of tokens, where the model keeps them as one grid.
        tokens: number of tokens.
        size: pixels of the resized image ``(width, height)`` that one token covers, if known.
        detail: description of how the tokens were made.
    """

    name: str
    grid: tuple[int, int] | None
    tokens: int
    size: tuple[int, int] | None
    detail: str


def stages_of(net: Any, trace: Trace, inputs: Any) -> tuple[list[Stage], tuple[int, int] | None]:
    """Return the stages of the tokens of all images, and a single image's resized size if it is one sequence."""
    if isinstance(trace.encoder, ViTUHDModel):
        stages, size = _vit_uhd_stages(trace.encoder.config, trace.tokens, inputs["grid_hws"].tolist())
        if isinstance(trace.connector, Connector) and not trace.connector.per_token:
            connected = placeholders(net, inputs["input_ids"])
            stages.append(Stage("connector", None, connected, None, trace.connector.name))
        return stages, size
    encoded = trace.tokens.get("encoder", 0)
    if isinstance(trace.connector, Connector) and inputs.get("image_sizes") is not None:  # views, in several calls
        encoded = int((inputs["image_sizes"] // net.config.vision_config.patch_size).prod(-1).sum())
    grids = [inputs[name] for name in ("image_grid_thw", "video_grid_thw") if inputs.get(name) is not None]
    patches = sum(int(grid.prod(-1).sum()) for grid in grids) if grids else encoded
    stages = []
    if patches:
        stages.append(Stage("patches", None, patches, None, "tokens of the vision encoder"))
    read = placeholders(net, inputs["input_ids"])
    read = read if read > 1 else trace.tokens.get("connector", encoded)
    stages.append(Stage("language model", None, read, None, "image tokens that the language model reads"))
    return stages, None


def _vit_uhd_stages(
    config: ViTUHDConfig, tokens: dict[str | int, int], grids: list[list[int]]
) -> tuple[list[Stage], tuple[int, int] | None]:
    rows, columns = grids[0]
    side, blocks = config.patch_size, config.merger_layer_index or ()
    processed_size = (columns * side, rows * side) if len(grids) == 1 else None
    # A plan made the image smaller, or there are several, which share no grid.
    if tokens["patches"] != rows * columns or len(grids) > 1:
        what = "the smaller image" if len(grids) == 1 else f"{len(grids)} images"
        together = [Stage("patches", None, tokens["patches"], None, f"patch embedding of {what}")]
        for number, (index, method) in enumerate(zip(blocks, config.stage_methods, strict=True), 1):
            together.append(Stage(f"stage {number}", None, tokens[index], None, f"{method} after block {index + 1}"))
        return together, processed_size
    stages = [Stage("patches", (rows, columns), tokens["patches"], (side, side), "patch embedding")]
    for number, (index, method) in enumerate(zip(blocks, config.stage_methods, strict=True), 1):
        rows, columns, side = rows // 2, columns // 2, side * 2
        detail = f"{method} after block {index + 1} of {config.num_hidden_layers}"
        stages.append(Stage(f"stage {number}", (rows, columns), tokens[index], (side, side), detail))
    return stages, processed_size


def with_plan(stages: list[Stage], plan: Plan, reports: tuple[ImageReport, ...]) -> list[Stage]:
    """Return the stages of the model followed by one stage for every step of the applied plan."""
    if stages[-1].name == "language model":
        detail = "image tokens of the prompt"
        stages = [*stages[:-1], Stage("connector", None, stages[-1].tokens, None, detail)]
    before = zip(*(report.steps for report in reports), strict=True)
    inside = zip(*(report.layers for report in reports), strict=True)
    return [
        *stages,
        *(
            Stage(str(step), None, sum(step_report.tokens_kept for step_report in done), None, DOINGS[step.method.site])
            for step, done in zip(plan.early_steps, before, strict=False)
        ),
        *(
            Stage(
                f"layer {done[0].layer}",
                None,
                sum(step_report.tokens_kept for step_report in done),
                None,
                done[0].method,
            )
            for done in inside
        ),
    ]
