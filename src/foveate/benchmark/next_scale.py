"""KV-cache compression in a next-scale image model: bytes, time, and distance of the images.

All plans run side by side on one model: in every turn each of them draws the same pictures with the same chance. The
full cache is what they are compared with. Random and newest tokens with the same budget are the controls.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from safetensors import SafetensorError
from torch import Tensor

from foveate.benchmark import profiling
from foveate.benchmark.results import earlier, read_results, write_json
from foveate.core.errors import FoveateError
from foveate.core.full_model import FULL_MODEL
from foveate.core.plan import parse_plan
from foveate.core.weights import SAFE, check_weights
from foveate.methods.kv_cache.base import METHODS, history
from foveate.models.next_scale import NextScaleConfig, NextScaleForImageGeneration, calibrate, compress_cache
from foveate.synthetic import class_pictures

KIND = "next-scale"
#: Bytes and time do not depend on weights: maps of an image of 512 px as in VAR, a narrower transformer.
LARGE = "large"
_LARGE = NextScaleConfig(
    image_size=512,
    downsampling=16,
    scales=[1, 2, 3, 4, 6, 9, 13, 18, 24, 32],
    hidden_size=256,
    num_hidden_layers=4,
    num_attention_heads=8,
)
PLANS = (
    *("hack:50%", "scalekv:50%", "random:50%", "recent:50%"),
    *("hack:30%", "scalekv:30%", "random:30%", "recent:30%"),
    *("hack:20%", "scalekv(window=9):20%", "random:20%", "recent:20%"),
    *("hack:10%", "scalekv(window=4):10%", "random:10%", "recent:10%"),
)


@dataclass(frozen=True)
class NextScaleSettings:
    """Settings of the next-scale benchmark.

    Args:
        model: A folder that `foveate train-next-scale` wrote, or "large": random weights, for bytes and time only.
        plans: Plans of `compress_cache`.
        samples: Pictures that are drawn in a turn, of classes in turn.
        held_out: Held-out images whose tokens are predicted; 0 for none.
        repeats: Timed turns after a warm-up.
        guidance: Of classifier-free guidance.
        seed: Seed of the images and of the random control.
        threads: Threads of the CPU.
    """

    model: str
    plans: tuple[str, ...] = PLANS
    samples: int = 32
    held_out: int = 128
    repeats: int = 3
    guidance: float = 1.5
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("held_out", 0), ("repeats", 1), ("threads", 1)):
            if getattr(self, name) < least:
                raise FoveateError(f"{name} is {getattr(self, name)}; the minimum is {least}.")
        for plan in self.plans:
            parse_plan(plan, METHODS)


def load(name: str) -> NextScaleForImageGeneration:
    """Load a model in float32 from a folder, or build the large one with random weights."""
    if name == LARGE:
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(0)
            return NextScaleForImageGeneration(_LARGE).eval()
    if not (Path(name) / "config.json").is_file():
        raise FoveateError(f"{name} is not a folder with a model; train one with foveate train-next-scale -o {name}.")
    check_weights(name)
    try:
        return NextScaleForImageGeneration.from_pretrained(name, dtype=torch.float32, **SAFE).eval()
    except (OSError, RuntimeError, SafetensorError) as error:
        raise FoveateError(f"the model in {name} cannot be read: {str(error).splitlines()[0]}") from error


def run(
    settings: NextScaleSettings,
    path: Path,
    *,
    resume: bool = False,
    command: str = "",
    picture: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure every plan and write the result.

    Args:
        settings: What to measure.
        path: JSON file.
        resume: Return the result in the file if it is complete and has the same settings.
        command: The command line, for the file.
        picture: Also save a figure of samples of all plans.
        report: Called with each finished part.

    Returns:
        The document. Its rows have, for the full model and every plan: `kept_bytes` (the most that the cache holds
        between two maps), `peak_bytes` (with the map that is read), `maps` (bytes kept after each map), `seconds` of a
        turn; `equal` (share of tokens that are those of the full cache under the same seed) and `equal_by_map`,
        `picture_mse` against the full cache's images (in [-1, 1]), and on held-out pictures, read map by map through
        the cache: `nats` a token, `best_equal` (share of tokens whose most likely code is the full cache's).
    """
    if picture is not None and settings.model == LARGE:
        raise FoveateError("the large model has random weights and draws nothing; leave the picture out.")
    if resume:
        (rows,) = earlier(path, asdict(settings), ["rows"], KIND)
        if rows and picture is not None and not picture.exists():
            raise FoveateError(
                f"{path} does not hold the images of a picture; measure again, or leave the picture out."
            )
        if rows:
            return read_results(path)
    with profiling.threads(settings.threads):
        document = _measure(settings, command, picture, report)
    write_json(path, document)
    return document


def _measure(
    settings: NextScaleSettings, command: str, picture: Path | None, report: Callable[[str], None]
) -> dict[str, Any]:
    model = load(settings.model)
    config = model.config
    profile = calibrate(model, seed=settings.seed + 1)  # not on the pictures that are compared
    report(f"calibrated on {profile.samples} images")
    plans = [FULL_MODEL]
    impossible: list[dict[str, str]] = []
    for plan in settings.plans:
        try:
            with compress_cache(model, plan, profile=profile, seed=settings.seed):
                plans.append(plan)
        except FoveateError as error:
            impossible.append({"model": settings.model, "plan": plan, **error.as_json()})
    labels = torch.arange(settings.samples) % config.num_classes

    @contextmanager
    def attached(plan: str) -> Generator[None]:
        with compress_cache(model, plan, profile=profile, seed=settings.seed) if plan != FULL_MODEL else nullcontext():
            yield

    seconds: dict[str, list[float]] = {plan: [] for plan in plans}
    samples: dict[str, Any] = dict.fromkeys(plans)  # in the order of the picture, not of the first turn
    for turn in range(settings.repeats + 1):
        for plan in profiling.in_turn(plans, turn):
            with attached(plan):
                start = profiling.clock(model.device)
                samples[plan] = model.generate(labels, guidance=settings.guidance, seed=settings.seed)
                if turn:  # the first one warms up
                    seconds[plan].append(profiling.clock(model.device) - start)
        report(f"turn {turn} of {settings.repeats}")
    held_out = _held_out(model, settings) if settings.held_out and settings.model != LARGE else None
    full = samples[FULL_MODEL]
    logits: dict[str, Tensor] = {}
    rows = []
    for plan in plans:
        row = _sizes(plan, settings, samples[plan], full, config)
        row["seconds"] = profiling.spread(seconds[plan])
        if settings.model != LARGE:
            row |= _distance(samples[plan], full, config)
        if held_out is not None:
            with attached(plan):
                logits[plan], _ = model.score(*held_out)
            row["nats"] = float(F.cross_entropy(logits[plan].flatten(0, 1), held_out[1].flatten()))
            same = logits[plan].argmax(dim=2) == logits[FULL_MODEL].argmax(dim=2)
            row["best_equal"] = float(same.float().mean())
            report(f"{plan}: {row['nats']:.4f} nats a token")
        rows.append(row)
    if picture is not None and settings.model != LARGE:
        grid(settings, samples, picture)
    return {
        "kind": KIND,
        "command": command,
        "hardware": profiling.hardware(model.device),
        "versions": profiling.versions(),
        "settings": asdict(settings),
        "note": "Budgets are shares of the tokens that a full cache holds before the last map. Bytes are those of all "
        "tensors that the cache holds, positions of ragged heads included, for the images of one turn with their "
        "unconditional halves.",
        "scales": config.scales,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "rows": rows,
        "impossible": impossible,
    }


def _held_out(model: NextScaleForImageGeneration, settings: NextScaleSettings) -> tuple[Tensor, Tensor]:
    pixels, labels = class_pictures.batch(range(settings.held_out), model.config.image_size, "held-out")
    with torch.no_grad():
        return labels, model.tokenizer.encode(pixels)


def _sizes(plan: str, settings: NextScaleSettings, sample: Any, full: Any, config: NextScaleConfig) -> dict[str, Any]:
    step = None if plan == FULL_MODEL else parse_plan(plan, METHODS).steps[0]
    total = history(config.scales)
    return {
        "model": settings.model,
        "plan": plan,
        "method": FULL_MODEL if step is None else step.method.name,
        "budget": "100%" if step is None else str(step.budget),
        "average": total if step is None else step.count(total),
        "kept_bytes": sample.cache.kept_bytes,
        "kept_share": sample.cache.kept_bytes / full.cache.kept_bytes,
        "peak_bytes": sample.cache.peak_bytes,
        "peak_share": sample.cache.peak_bytes / full.cache.peak_bytes,
        "maps": [record.bytes for record in sample.cache.records],
    }


def _distance(sample: Any, full: Any, config: NextScaleConfig) -> dict[str, Any]:
    same = (sample.token_ids == full.token_ids).float()
    return {
        "equal": float(same.mean()),
        "equal_by_map": [float(same[:, start:end].mean()) for start, end in config.bounds],
        "picture_mse": float(F.mse_loss(sample.pixel_values, full.pixel_values)),
    }


def grid(settings: NextScaleSettings, samples: dict[str, Any], path: Path, columns: int = 8, larger: int = 2) -> None:
    """Draw generated images: one row per plan, with the same class and seed in each column.

    Args:
        settings: Of the run.
        samples: What every plan drew.
        path: The file.
        columns: At most so many of the first 16 images, evenly spread.
        larger: Pixels on the side of a pixel.
    """
    some = range(0, min(16, settings.samples), max(1, min(16, settings.samples) // columns))
    shown = {plan: class_pictures.to_images(sample.pixel_values[list(some)]) for plan, sample in samples.items()}
    side = next(iter(shown.values()))[0].width * larger
    margin, gap = 170, 4
    width = margin + len(some) * (side + gap)
    page = Image.new("RGB", (width, len(shown) * (side + gap) + gap), (255, 255, 255))
    pen = ImageDraw.Draw(page)
    for row, (plan, images) in enumerate(shown.items()):
        top = gap + row * (side + gap)
        pen.text((6, top + side // 2 - 6), "full cache" if plan == FULL_MODEL else plan, fill=(0, 0, 0))
        for column, image in enumerate(images):
            page.paste(image.resize((side, side), Image.Resampling.NEAREST), (margin + column * (side + gap), top))
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path, optimize=True)


def unsteady(document: dict[str, Any]) -> str:
    """Return `profiling.unsteady` of the times."""
    return profiling.unsteady((row["plan"], row["seconds"]["all"]) for row in document["rows"])


def table(document: dict[str, Any], brief: bool = False) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of a result as text.

    Args:
        document: Of `run`.
        brief: Without the bytes, only their shares.
    """
    rows = document["rows"]
    columns: list[tuple[str, Callable[[dict[str, Any]], str]]] = [("plan", lambda row: row["plan"])]
    for what in ("kept", "peak"):
        if not brief:
            columns.append((f"{what}, KiB", lambda row, what=what: f"{row[f'{what}_bytes'] / 1024:,.0f}"))
        columns.append((f"{what}, %", lambda row, what=what: f"{100 * row[f'{what}_share']:.1f}"))
    columns.append(("seconds", lambda row: f"{row['seconds']['median']:.3f}"))
    if any("equal" in row for row in rows):
        columns.append(("equal tokens, %", lambda row: f"{100 * row['equal']:.1f}"))
        columns.append(("image MSE", lambda row: f"{row['picture_mse']:.4f}"))
    if any("nats" in row for row in rows):
        columns.append(("nats a token", lambda row: f"{row['nats']:.4f}"))
        columns.append(("same best, %", lambda row: f"{100 * row['best_equal']:.1f}"))
    return [name for name, _ in columns], [[cell(row) for _, cell in columns] for row in rows]
