"""Cost of vision encoders: tokens, FLOPs, time, memory, and time to first token.

All competitors stand in memory together and take turns, so that a machine that slows down slows them all. In one
turn an image goes through the encoder, its connector and the prefill of the same language model; the time of the
encoder is the first part of the time to the first token. Weights are random: cost does not depend on them.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config

from foveate.benchmark import profiling
from foveate.benchmark.competitors import COMPETITORS, QWEN2_7B, Competitor, Geometry, language_model
from foveate.benchmark.results import earlier, write_json
from foveate.core.errors import FoveateError
from foveate.cost import flops

AGREEMENT = 0.02
"""How far the counted FLOPs may be from the closed formula."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NOTE = (
    "Weights are random: cost does not depend on them. Every encoder gets the multiple of its own unit nearest to the "
    "asked side. Time to first token: encoder, connector, and prefill of the visual tokens and the text tokens up to "
    "the choice of one token, without image processing."
)
CLAIMS = [
    {
        "claim": "ViT-UHD reaches the first token 2.4 times earlier than MoonViT in the same model, 1024 px",
        "ratio": 2.4,
        "over": "moonvit",
        "pixels": 1024,
        "setting": "arXiv 2511.21150: Qwen2-7B on a GPU, from a plot (122 against 297 ms)",
    },
    {
        "claim": "LLaVA-UHD v3 reaches the first token 1.9 times earlier than Qwen2-VL-7B",
        "ratio": 1.9,
        "over": "qwen2.5-vl",
        "pixels": 1024,
        "setting": "arXiv 2511.21150: whole models on a GPU (153.8 against 301.8 ms); compared here with the encoder "
        "of Qwen2.5-VL before the same language model",
    },
]


@dataclass(frozen=True)
class EncoderSettings:
    """Settings of the encoder benchmark; a run can be resumed only with the same settings.

    Args:
        sizes: Sides of square images in pixels.
        encoders: Names in `COMPETITORS`.
        repeats: Timed turns after one warm-up.
        device: "cpu" or "cuda".
        dtype: A name in `DTYPES`.
        attention: `attn_implementation` of all models.
        text_tokens: Tokens of text after the image.
        threads: Threads of the CPU.
        geometry: Sizes of the models.

    Raises:
        FoveateError: If a value is not possible.
    """

    sizes: tuple[int, ...] = (512, 768, 1024)
    encoders: tuple[str, ...] = tuple(COMPETITORS)
    repeats: int = 5
    device: str = "cpu"
    dtype: str = "float32"
    attention: str = "sdpa"
    text_tokens: int = 32
    threads: int = 1
    geometry: Geometry = field(default_factory=Geometry)

    def __post_init__(self) -> None:
        unknown = [name for name in self.encoders if name not in COMPETITORS]
        if unknown or not self.encoders:
            raise FoveateError(f"encoders {unknown} are not known; possible are {', '.join(COMPETITORS)}.")
        if not self.sizes or min(self.sizes) < 1 or max(self.sizes) > 4096:
            raise FoveateError(f"sizes {list(self.sizes)} must be sides between 1 and 4096 pixels.")
        if self.repeats < 1 or self.text_tokens < 1 or self.threads < 1:
            raise FoveateError("repeats, text tokens and threads must be at least 1.")
        if self.dtype not in DTYPES:
            raise FoveateError(f"dtype {self.dtype!r} is not known; possible are {', '.join(DTYPES)}.")
        if self.device not in ("cpu", "cuda"):
            raise FoveateError(f"device {self.device!r} is not known; possible are cpu and cuda.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise FoveateError("there is no CUDA device here; use --device cpu.")


def gpu_geometry() -> Geometry:
    """Return the released encoder sizes with a language model of 7B."""
    return Geometry(text=dict(QWEN2_7B))


def compare(
    settings: EncoderSettings,
    path: Path | None = None,
    *,
    resume: bool = False,
    command: str = "",
    report: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Measure all encoders at all image sizes.

    Args:
        settings: What to measure.
        path: JSON file, replaced in one step after every size.
        resume: Keep the sizes that the file already has.
        command: The command line, for the file.
        report: Called with a line about every size begun.

    Returns:
        The content of the file.

    Raises:
        FoveateError: If the file to resume from has other settings or is no result, or if counted FLOPs and closed
            formula differ by more than `AGREEMENT`.
    """
    device = torch.device(settings.device)
    described = json.loads(json.dumps(asdict(settings)))
    described.pop("sizes")
    hardware = profiling.hardware(device) | {"threads": settings.threads}
    (rows,) = earlier(path, described, ("rows",), hardware=hardware) if resume and path is not None else ([],)
    missing = [pixels for pixels in settings.sizes if pixels not in {row["pixels"] for row in rows}]

    document: dict[str, Any] = {
        "command": command,
        "machine": _machine(hardware, settings),
        "hardware": hardware,
        "versions": profiling.versions(),
        "settings": described,
        "note": NOTE,
        "rows": rows,
    }
    with profiling.threads(settings.threads):
        if missing:
            report(f"building {', '.join(settings.encoders)} and the language model")
            bench = _Bench(settings, device)
            for pixels in missing:
                report(f"{pixels} px")
                rows.extend(bench.measure(pixels))
                if path is not None:
                    _conclude(document)
                    write_json(path, document)
    _conclude(document)
    if path is not None:
        write_json(path, document)
    return document


class _Bench:
    """All models of a run, in memory."""

    def __init__(self, settings: EncoderSettings, device: torch.device) -> None:
        self.settings, self.device, self.dtype = settings, device, DTYPES[settings.dtype]
        # Built with PyTorch's own attention, which is what FLOPs are counted on.
        self.language_model = language_model(settings.geometry, "sdpa").to(device, self.dtype).eval()
        self.competitors: dict[str, Competitor] = {}
        for name in settings.encoders:
            competitor = COMPETITORS[name](settings.geometry, "sdpa")
            competitor.encoder.to(device, self.dtype).eval()
            competitor.connector.to(device, self.dtype).eval()
            self.competitors[name] = competitor
        self.text = torch.arange(settings.text_tokens, device=device)[None] % self.language_model.config.vocab_size

    @torch.inference_mode()
    def measure(self, pixels: int) -> list[dict[str, Any]]:
        """Measure all encoders at one image size."""
        inputs = {
            name: competitor.inputs(pixels, self.device, self.dtype) for name, competitor in self.competitors.items()
        }
        rows = {name: self._exact(name, pixels, inputs[name]) for name in inputs}
        self._attend(self.settings.attention)
        for name in inputs:  # warm-up, and the first pass at this size: its memory is not there yet
            encode = partial(self.competitors[name].encode, **inputs[name])
            rows[name]["peak_bytes"] = profiling.peak_memory(encode, self.device)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in inputs}
        for turn in range(self.settings.repeats):
            for name in profiling.in_turn(inputs, turn):
                times[name].append(self._turn(name, inputs[name]))
        self._attend("sdpa")
        for name, row in rows.items():
            encoder, total = ([time[part] for time in times[name]] for part in (0, 1))
            row["seconds"] = statistics.median(encoder)
            row["ttft_seconds"] = statistics.median(total)
            row["spread"] = {"seconds": profiling.spread(encoder), "ttft_seconds": profiling.spread(total)}
        return list(rows.values())

    def _attend(self, implementation: str) -> None:
        for model in (*(competitor.encoder for competitor in self.competitors.values()), self.language_model):
            model.set_attn_implementation(implementation)

    def _turn(self, name: str, inputs: dict[str, torch.Tensor]) -> tuple[float, float]:
        """Return seconds to the end of the encoder and to the first token."""
        start = profiling.clock(self.device)
        tokens = self.competitors[name].encode(**inputs)
        encoded = profiling.clock(self.device)
        self._first_token(name, tokens).item()
        return encoded - start, profiling.clock(self.device) - start

    def _first_token(self, name: str, tokens: torch.Tensor) -> torch.Tensor:
        text = self.language_model.get_input_embeddings()(self.text)
        visual = self.competitors[name].connector(tokens)[None]
        prompt = torch.cat((visual, text), dim=1)
        return self.language_model(inputs_embeds=prompt, logits_to_keep=1, use_cache=True).logits[0, -1].argmax()

    def _exact(self, name: str, pixels: int, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Return the values that need no timing: tokens, and FLOPs counted and in closed form."""
        competitor, text = self.competitors[name], self.settings.text_tokens
        tokens = competitor.tokens(pixels)
        encoded: list[torch.Tensor] = []
        counted = flops.count(lambda: encoded.append(competitor.encode(**inputs)))
        if len(encoded[0]) != tokens:
            raise RuntimeError(f"{competitor.name} returned {len(encoded[0])} tokens at {pixels} px, not {tokens}")
        counted_rest = flops.count(lambda: self._first_token(name, encoded[0]))
        formula = competitor.flops(pixels)
        rest = competitor.connector_flops(pixels) + flops.prefill(tokens + text, self.language_model.config)
        for what, value, expected in (
            (competitor.name, counted, formula),
            ("connector and prefill", counted_rest, rest),
        ):
            if abs(value - expected) > AGREEMENT * expected:
                raise FoveateError(
                    f"FLOPs of {what} at {pixels} px: {value:,} counted, {expected:,} by the formula; they must agree "
                    f"within {AGREEMENT:.0%}."
                )
        return {
            "encoder": competitor.name,
            "name": name,
            "pixels": pixels,
            "side": competitor.side(pixels),
            "patches": competitor.patches(pixels),
            "tokens": tokens,
            "flops": counted,
            "flops_formula": formula,
            "flops_full_attention": competitor.full_attention_flops(pixels),
            "flops_connector_and_prefill": counted_rest,
            "flops_connector_and_prefill_formula": rest,
        }


def _machine(hardware: dict[str, Any], settings: EncoderSettings) -> str:
    if "gpu" in hardware:
        return f"{hardware['gpu']}, {settings.dtype}"
    threads = f"{settings.threads} thread{'s' if settings.threads > 1 else ''}"
    return f"{hardware['cpu']}, {threads}, {settings.dtype}"


def _conclude(document: dict[str, Any]) -> None:
    """Derive ratios from the rows, compare them with published claims, and explain them."""
    rows, text = document["rows"], document["settings"]["text_tokens"]
    rows.sort(key=lambda row: (row["pixels"], list(COMPETITORS).index(row["name"])))
    ours = {row["pixels"]: row for row in rows if row["name"] == "vit-uhd"}
    document["ratios"] = [
        {
            "pixels": row["pixels"],
            "over": row["name"],
            **{key: row[key] / ours[row["pixels"]][key] for key in ("tokens", "flops", "seconds", "ttft_seconds")},
            "flops_to_first_token": _to_first_token(row) / _to_first_token(ours[row["pixels"]]),
            "flops_before_7b": _before_7b(row, text) / _before_7b(ours[row["pixels"]], text),
        }
        for row in rows
        if row["name"] != "vit-uhd" and row["pixels"] in ours
    ]
    document["claims"] = [
        claim
        | {"measured": next((ratio["ttft_seconds"] for ratio in document["ratios"] if _matches(claim, ratio)), None)}
        for claim in CLAIMS
    ]
    document["explanation"] = _explanation(document)


def _matches(claim: dict[str, Any], ratio: dict[str, Any]) -> bool:
    return (claim["over"], claim["pixels"]) == (ratio["over"], ratio["pixels"])


def _to_first_token(row: dict[str, Any]) -> int:
    return row["flops"] + row["flops_connector_and_prefill"]


def _before_7b(row: dict[str, Any], text: int) -> int:
    """FLOPs of the encoder and of a prefill by a Qwen2-7B."""
    return row["flops"] + flops.prefill(row["tokens"] + text, Qwen2Config(**QWEN2_7B))


def _explanation(document: dict[str, Any]) -> list[str]:
    """Sentences that say which parts of each encoder the FLOPs are spent in."""
    lines = []
    for row in document["rows"]:
        total = _to_first_token(row)
        lines.append(
            f"{row['encoder']} at {row['pixels']} px: {row['patches']:,} patches of a {row['side']} px image become "
            f"{row['tokens']:,} tokens; {total / 1e12:.2f} TFLOP to the first token, {row['flops'] / total:.0%} of "
            f"it in the encoder, {row['flops_full_attention'] / total:.0%} in the encoder's full attention; "
            f"{row['flops'] / row['seconds'] / 1e9:,.0f} GFLOP/s in the encoder, "
            f"{row['flops_connector_and_prefill'] / (row['ttft_seconds'] - row['seconds']) / 1e9:,.0f} after it."
        )
    for ratio in document["ratios"]:
        lines.append(
            f"At {ratio['pixels']} px {ratio['over']} needs {ratio['flops_to_first_token']:.2f} times the operations "
            f"of ViT-UHD to the first token and took {ratio['ttft_seconds']:.2f} times as long; "
            f"it passes {ratio['tokens']:.2f} times the tokens to the language model."
        )
    for ratio in document["ratios"]:
        lines.append(
            f"Before a language model of 7B, as in the paper, {ratio['over']} at {ratio['pixels']} px would need "
            f"{ratio['flops_before_7b']:.2f} times the operations of ViT-UHD (by the formulas)."
        )
    if document["ratios"]:
        lines.append(
            "A larger language model gives the saved tokens more weight against the encoder, whose blocks before the "
            "first stage attend to the finest patches. Operations are not time: attention and matrix products run at "
            "different speeds, and differently on a CPU and on a GPU, so the ratio of times need not be the paper's."
        )
    return lines


def markdown(results: dict[str, Any]) -> str:
    """Format table, claims and explanation of a result as markdown."""
    header = [
        "encoder",
        "side, px",
        "patches",
        "tokens out",
        "GFLOPs",
        "encoder, ms",
        "min to max",
        "peak, MiB",
        "TTFT, ms",
    ]
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *(_cells(row) for row in results["rows"])]
    parts = ["\n".join(f"| {' | '.join(line)} |" for line in lines), results["note"]]
    for claim in results["claims"]:
        measured = "not measured" if claim["measured"] is None else f"measured here: {claim['measured']:.2f}"
        parts.append(f"- {claim['claim']} ({claim['setting']}); {measured}.")
    parts.append("\n".join(f"- {line}" for line in results["explanation"]))
    return "\n\n".join(parts)


def _cells(row: dict[str, Any]) -> list[str]:
    times = row["spread"]["seconds"]
    return [
        row["encoder"],
        f"{row['pixels']} ({row['side']})",
        f"{row['patches']:,}",
        f"{row['tokens']:,}",
        f"{row['flops'] / 1e9:,.0f}",
        f"{row['seconds'] * 1e3:,.0f}",
        f"{times['min'] * 1e3:,.0f} to {times['max'] * 1e3:,.0f}",
        "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:,.0f}",
        f"{row['ttft_seconds'] * 1e3:,.0f}",
    ]


def unsteady(results: dict[str, Any]) -> str:
    """Return `profiling.unsteady` of the times of the encoders."""
    return profiling.unsteady(
        (f"{row['encoder']} at {row['pixels']} px", row["spread"]["seconds"]["all"]) for row in results["rows"]
    )


def table(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of a result for a terminal of 80 columns, without patches and spread."""
    header = ["encoder", "side, px", "tokens", "GFLOPs", "encoder, ms", "peak, MiB", "TTFT, ms"]
    rows = []
    for row in results["rows"]:
        name, side, _, tokens, operations, seconds, _, peak, first = _cells(row)
        rows.append([name, side, tokens, operations, seconds, peak, first])
    return header, rows


def plot(results: dict[str, Any], path: Path) -> None:
    """Plot time to first token by image size, with the encoder's part dark.

    Raises:
        FoveateError: If matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FoveateError("the plot needs matplotlib; install it with `pip install foveate[bench]`.") from error
    rows = results["rows"]
    names = list(dict.fromkeys(row["encoder"] for row in rows))
    sizes = sorted({row["pixels"] for row in rows})
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, name in enumerate(names):
        mine = [row for row in rows if row["encoder"] == name]
        places = [sizes.index(row["pixels"]) + (index - (len(names) - 1) / 2) * 0.8 / len(names) for row in mine]
        color = f"C{index}"
        axes.bar(places, [row["ttft_seconds"] for row in mine], 0.8 / len(names), color=color, alpha=0.4)
        axes.bar(places, [row["seconds"] for row in mine], 0.8 / len(names), color=color, label=name)
    axes.set_xticks(range(len(sizes)), [f"{size} px" for size in sizes])
    axes.set_ylabel("seconds to the first token (dark: encoder)")
    axes.set_title(results["machine"], fontsize="small")
    axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
