"""What choosing tokens costs: every method inside a full prefill, beside random tokens of the same number.

A method can be no faster than keeping k tokens at random on the same kernels. Its *efficiency* is its speed-up over the
untouched model divided by the speed-up of random k; below 1 is the price of measuring and choosing.

All plans of a shape run in turns within one process, each turn in another order, so that whatever else the machine
does falls on all of them alike.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
)

from foveate.benchmark import measure
from foveate.benchmark.competitors import QWEN2_7B, Geometry
from foveate.benchmark.encoders import DTYPES
from foveate.errors import FoveateError
from foveate.plan import Plan, Step, all_methods
from foveate.runtime import Handle, compress

NOTE = (
    "Speed-up: time to the first token (encoder, selection and prefill) of the untouched model over that with the "
    "plan. Efficiency: speed-up over that of random tokens of the same number; 1 is the limit. Selection: time of "
    "choosing, of the prefill with all tokens. Random weights: cost does not depend on them. Median of the turns."
)
UNTOUCHED = "untouched"
_IMAGE = 151655


@dataclass(frozen=True)
class Shape:
    """A model's real size, and the budgets it is measured at.

    Args:
        name: Of the shape.
        build: Makes the model from the configuration of its text part.
        inputs: Makes the inputs of one prompt with one image, from the number of text tokens.
        budgets: As plans write them.
    """

    name: str
    build: Callable[[dict[str, Any]], nn.Module]
    inputs: Callable[[int], dict[str, Any]]
    budgets: tuple[str, ...]


def _clip() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )


def _prompt(image_tokens: int, text: int) -> dict[str, Any]:
    ids = torch.cat([torch.arange(10, 14), torch.full((image_tokens,), _IMAGE), torch.arange(20, 20 + text)])[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _llava(text: dict[str, Any]) -> nn.Module:
    config = LlavaConfig(vision_config=_clip(), text_config=Qwen2Config(**text))
    config.image_token_id = _IMAGE
    return LlavaForConditionalGeneration(config)


def _llava_inputs(text: int) -> dict[str, Any]:
    return _prompt(576, text) | {"pixel_values": torch.randn(1, 3, 336, 336)}


def _llava_next(text: dict[str, Any]) -> nn.Module:
    config = LlavaNextConfig(vision_config=_clip(), text_config=Qwen2Config(**text))
    config.image_token_id = _IMAGE
    return LlavaNextForConditionalGeneration(config)


def _llava_next_inputs(text: int) -> dict[str, Any]:
    # 672 x 672 pixels: a thumbnail and four tiles, and a newline after every row of 48 tokens.
    tokens = 576 + 48 * 49
    pixels = {"pixel_values": torch.randn(1, 5, 3, 336, 336), "image_sizes": torch.tensor([[672, 672]])}
    return _prompt(tokens, text) | pixels


def _qwen(text: dict[str, Any]) -> nn.Module:
    rope = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}
    if text["hidden_size"] // text["num_attention_heads"] == 64:
        rope["mrope_section"] = [8, 12, 12]
    config = Qwen2_5_VLConfig(
        text_config={**text, "rope_parameters": rope},
        # The width is that of the released towers; the default of transformers is the width of the text.
        vision_config={"hidden_size": 1280, "out_hidden_size": text["hidden_size"]},
        image_token_id=_IMAGE,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def _qwen_inputs(text: int) -> dict[str, Any]:
    side = 72  # patches of 14 pixels: 1008 pixels, the multiple of 28 next to 1024
    inputs = _prompt(side * side // 4, text)
    return inputs | {
        "pixel_values": torch.randn(side * side, 3 * 2 * 14 * 14),
        "image_grid_thw": torch.tensor([[1, side, side]]),
        "mm_token_type_ids": (inputs["input_ids"] == _IMAGE).int(),
    }


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("llava-1.5", _llava, _llava_inputs, ("64", "128", "192")),
        Shape("llava-next", _llava_next, _llava_next_inputs, ("160", "320", "640")),
        Shape("qwen2.5-vl", _qwen, _qwen_inputs, ("10%", "25%", "50%")),
    )
}


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Args:
        shapes: Names of `SHAPES`.
        methods: Names of methods; those that a model cannot run are listed with the reason.
        budgets: In place of the shapes' own.
        repeats: Turns after a warm-up.
        text_tokens: Tokens of text after the image.
        device: "cpu" or "cuda".
        dtype: "float32", "bfloat16" or "float16".
        threads: Threads of the CPU.
        text: Configuration of the text part.

    Raises:
        FoveateError: If something is not known or not possible.
    """

    shapes: tuple[str, ...] = tuple(SHAPES)
    methods: tuple[str, ...] = ()
    budgets: tuple[str, ...] = ()
    repeats: int = 3
    text_tokens: int = 32
    device: str = "cpu"
    dtype: str = "bfloat16"
    threads: int = 1
    text: str = "qwen2-0.5b"

    def __post_init__(self) -> None:
        for kind, given, known in (("shapes", self.shapes, SHAPES), ("methods", self.methods, all_methods())):
            unknown = [name for name in given if name not in known]
            if unknown:
                raise FoveateError(f"{kind} {unknown} are not known; possible are {', '.join(known)}.")
        if not self.shapes or min(self.repeats, self.text_tokens, self.threads) < 1:
            raise FoveateError("at least one shape, one turn, one text token and one thread are needed.")
        if self.dtype not in DTYPES or self.text not in TEXTS:
            raise FoveateError(f"dtype is one of {', '.join(DTYPES)}, text one of {', '.join(TEXTS)}.")
        if self.device not in ("cpu", "cuda"):
            raise FoveateError(f"device {self.device!r} is not known; possible are cpu and cuda.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise FoveateError("there is no CUDA device here; use --device cpu.")


TEXTS: dict[str, dict[str, Any]] = {"qwen2-0.5b": dict(Geometry().text), "qwen2-7b": dict(QWEN2_7B)}


class Timed:
    """A method whose calls are timed; everything else is the method's."""

    def __init__(self, method: Any, device: torch.device) -> None:
        self._method = method
        self._device = device
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    def __call__(self, *args: Any) -> Any:
        """Choose, and add the time it took."""
        start = measure.clock(self._device)
        try:
            return self._method(*args)
        finally:
            self.seconds += measure.clock(self._device) - start


def steps_of(names: Sequence[str], budget: str) -> list[str]:
    """Plans of all methods that run without weights or data of their own."""
    plans = []
    for name, cls in all_methods().items():
        if (names and name not in names) or cls.trained or cls.budget == "none":
            continue
        plans.append(f"{name}:{budget}")
    return plans


def run(
    settings: Settings,
    path: Path | None = None,
    *,
    resume: bool = False,
    command: str = "",
    report: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Measure all plans on all shapes.

    Args:
        settings: What to measure.
        path: JSON file, replaced in one step after every budget.
        resume: Keep the rows that the file already has.
        command: The command line, for the file.
        report: Called with a line about everything begun.

    Returns:
        The content of the file.

    Raises:
        FoveateError: The file to resume from has other settings or is no result.
    """
    device = torch.device(settings.device)
    described = {**asdict(settings), "shapes": None, "methods": None, "budgets": None}
    document: dict[str, Any] = {
        "command": command,
        "hardware": measure.hardware(device) | {"threads": settings.threads},
        "versions": measure.versions(),
        "settings": described,
        "note": NOTE,
        "rows": _kept(path, described) if resume and path is not None else [],
        "impossible": [],
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        for name in settings.shapes:
            shape = SHAPES[name]
            bench: _Bench | None = None
            for budget in settings.budgets or shape.budgets:
                if any((row["shape"], row["budget"]) == (name, budget) for row in document["rows"]):
                    continue
                if bench is None:
                    report(f"building {name}")
                    bench = _Bench(shape, settings, device)
                report(f"{name}, {budget}")
                rows, impossible = bench.measure(budget, report)
                document["rows"] += rows
                document["impossible"] += [line for line in impossible if line not in document["impossible"]]
                if path is not None:
                    _write(path, document)
            del bench
    finally:
        torch.set_num_threads(threads)
    if path is not None:
        _write(path, document)
    return document


class _Bench:
    """One model."""

    def __init__(self, shape: Shape, settings: Settings, device: torch.device) -> None:
        self.shape, self.settings, self.device = shape, settings, device
        dtype = DTYPES[settings.dtype]
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.model: Any = shape.build(TEXTS[settings.text]).to(device).eval()
                inputs = shape.inputs(settings.text_tokens)
        finally:
            torch.set_default_dtype(before)
        self.inputs = {
            name: value.to(device, dtype) if value.is_floating_point() else value.to(device)
            for name, value in inputs.items()
        }
        self.text = self.model.model.language_model
        self.encoder = getattr(self.model.model, "vision_tower", None) or self.model.model.visual

    def measure(
        self, budget: str, report: Callable[[str], object]
    ) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
        """Rows of all plans at one budget, and those that the model cannot run, with the reason."""
        plans, impossible = [UNTOUCHED], []
        for plan in steps_of(self.settings.methods, budget):
            try:
                compress(self.model, plan).restore()
                plans.append(plan)
            except FoveateError as error:
                impossible.append({"shape": self.shape.name, "plan": plan.split(":")[0], "reason": str(error)})
        times: dict[str, list[dict[str, float]]] = {plan: [] for plan in plans}
        kept: dict[str, int] = {}
        for turn in range(self.settings.repeats + 1):
            order = plans[turn % len(plans) :] + plans[: turn % len(plans)]
            for plan in order:
                seconds, kept[plan] = self._turn(plan)
                if turn:  # the first one warms up
                    times[plan].append(seconds)
            report(f"  turn {turn} of {self.settings.repeats}")
        rows = []
        for plan in plans:
            parts = {part: statistics.median(turn[part] for turn in times[plan]) for part in times[plan][0]}
            row = {
                "shape": self.shape.name,
                "budget": budget,
                "method": plan.split(":")[0],
                "tokens": kept[plan],
                "seconds": parts,
                "spread": measure.spread([turn["total"] for turn in times[plan]]),
            }
            rows.append(row)
        _conclude(rows)
        return rows, impossible

    @torch.inference_mode()
    def _turn(self, plan: str) -> tuple[dict[str, float], int]:
        """Seconds of the parts of one prefill, and the tokens that the language model read."""
        spans: dict[str, float] = {"encoder": 0.0, "language": 0.0}
        handles = [self._span(spans, "encoder", self.encoder), self._span(spans, "language", self.text)]
        handle: Handle | None = None
        timed: list[Timed] = []
        if plan != UNTOUCHED:
            parsed = Plan.of(plan)
            timed = [Timed(step.method, self.device) for step in parsed.steps]
            steps = tuple(Step(method, step.budget) for method, step in zip(timed, parsed.steps, strict=True))
            handle = compress(self.model, replace(parsed, steps=steps))
        try:
            start = measure.clock(self.device)
            self.model(**self.inputs, use_cache=True, logits_to_keep=1).logits.argmax().item()
            total = measure.clock(self.device) - start
            tokens = int((self.inputs["input_ids"] == _IMAGE).sum()) if handle is None else handle.report().tokens_kept
        finally:
            if handle is not None:
                handle.restore()
            for pair in handles:
                for hook in pair:
                    hook.remove()
        selection = sum(method.seconds for method in timed)
        parts = {"encoder": spans["encoder"], "selection": selection, "prefill": spans["language"] - selection}
        return parts | {"total": total}, tokens

    def _span(self, spans: dict[str, float], name: str, module: nn.Module) -> list[Any]:
        begun: list[float] = []
        before = partial(_begin, begun, self.device)
        after = partial(_end, begun, spans, name, self.device)
        return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


def _begin(begun: list[float], device: torch.device, *_: Any) -> None:
    begun.append(measure.clock(device))


def _end(begun: list[float], spans: dict[str, float], name: str, device: torch.device, *_: Any) -> None:
    spans[name] += measure.clock(device) - begun.pop()


def _conclude(rows: list[dict[str, Any]]) -> None:
    """Ratios of the rows of one budget: to the untouched model, and to random tokens."""
    by_method = {row["method"]: row for row in rows}
    untouched = by_method[UNTOUCHED]["seconds"]
    chance = by_method.get("random")
    for row in rows:
        row["speed_up"] = untouched["total"] / row["seconds"]["total"]
        row["selection_of_prefill"] = row["seconds"]["selection"] / untouched["prefill"]
        row["efficiency"] = None if chance is None else chance["seconds"]["total"] / row["seconds"]["total"]


def _kept(path: Path, described: dict[str, Any]) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        settings, rows = document["settings"], document["rows"]
    except (ValueError, KeyError, TypeError) as error:
        raise FoveateError(f"{path} is no result of this benchmark, so it cannot be resumed.") from error
    described = json.loads(json.dumps(described))
    if settings != described:
        different = sorted(key for key in described if settings.get(key) != described[key])
        raise FoveateError(f"{path} was measured with other settings ({', '.join(different)}); choose another file.")
    return rows


def _write(path: Path, document: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def table(document: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a result."""
    header = ["shape, budget", "method", "tokens", "encoder, ms", "selection, ms", "TTFT, ms", "speed-up", "efficiency"]
    rows = []
    for row in document["rows"]:
        parts = row["seconds"]
        efficiency = row["efficiency"]
        rows.append(
            [
                f"{row['shape']}, {row['budget']}",
                row["method"],
                f"{row['tokens']:,}",
                f"{1000 * parts['encoder']:,.0f}",
                f"{1000 * parts['selection']:,.2f} ({row['selection_of_prefill']:.2%})",
                f"{1000 * parts['total']:,.0f}",
                f"{row['speed_up']:.2f}",
                "" if efficiency is None else f"{efficiency:.3f}",
            ]
        )
    return header, rows


def plot(document: dict[str, Any], path: Path) -> None:
    """Efficiency of every method, one panel a shape, one mark a budget.

    Raises:
        FoveateError: matplotlib is missing.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FoveateError("a plot needs matplotlib: pip install 'foveate[bench]'.") from error
    shapes = list(dict.fromkeys(row["shape"] for row in document["rows"]))
    with mpl.rc_context({"font.size": 9}):
        names = sorted({row["method"] for row in document["rows"]} - {UNTOUCHED, "random"})
        figure = Figure(figsize=(4.2 * len(shapes) + 1.5, 0.26 * len(names) + 1.6), layout="constrained")
        axes = figure.subplots(1, len(shapes), sharey=True, squeeze=False)[0]
        for axis, shape in zip(axes, shapes, strict=True):
            budgets = list(dict.fromkeys(row["budget"] for row in document["rows"] if row["shape"] == shape))
            for number, budget in enumerate(budgets):
                found = {
                    row["method"]: row["efficiency"]
                    for row in document["rows"]
                    if (row["shape"], row["budget"]) == (shape, budget) and row["efficiency"] is not None
                }
                places = [(found[name], place) for place, name in enumerate(names) if name in found]
                axis.scatter(
                    *zip(*places, strict=True),
                    s=22,
                    label=budget if budget.endswith("%") else f"{budget} tokens",
                    zorder=3,
                    alpha=0.85,
                    marker="os^"[number % 3],
                )
            axis.axvline(1, color="0.2", linewidth=1)
            axis.axvline(0.95, color="0.6", linewidth=0.8, linestyle="--")
            axis.set(title=shape, xlabel="efficiency: speed-up / speed-up of random tokens")
            axis.set_yticks(range(len(names)), names)
            axis.grid(axis="y", color="0.92")
            axis.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=3)
        axes[0].invert_yaxis()
        figure.savefig(path, dpi=160)
