"""Time and memory of encoders as patches become smaller: attention against a scan.

The encoders of Scaling Laws in Patchification (arXiv 2502.03738), `plain_vit` and `adventurer`, get the same width and
number of blocks and one image. Both stand in memory at every patch size and take turns, so that a machine that slows
down slows both. Weights are random: cost does not depend on them.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from foveate.benchmark import profiling
from foveate.benchmark.encoders import DTYPES
from foveate.benchmark.results import earlier, write_json
from foveate.core.errors import FoveateError
from foveate.models.encoders import Encoder
from foveate.models.encoders.adventurer import AdventurerConfig, AdventurerModel
from foveate.models.encoders.plain_vit import PlainViTConfig, PlainViTModel

KIND = "patch-scaling"
#: Channels of a head of both encoders, which the width is a multiple of.
HEAD = 64
TITLES = {"plain_vit": "ViT (SDPA)", "adventurer": "Adventurer (scan)"}
NOTE = (
    "Inference of one image; weights are random, and both encoders have the same width and number of blocks. Growth is "
    "the exponent a of N^a between a patch size and the next larger one, N being the number of tokens. Peak: memory "
    "beyond the weights and the image. Times are those of this width and this machine, on which other programs may "
    "have run; the ratios and the growth say more."
)


@dataclass(frozen=True)
class PatchScalingSettings:
    """Settings of the benchmark; a run can be resumed only with the same settings.

    Args:
        patch_sizes: Sides of patches in pixels.
        image_size: Side of the image in pixels, which every patch size divides.
        hidden_size: Width of both encoders, a multiple of 64.
        num_hidden_layers: Blocks of both encoders.
        repeats: Timed turns after a warm-up, in which memory is measured.
        device: "cpu" or "cuda".
        dtype: A name in `DTYPES`.
        scan: `scan` of Adventurer, "torch" or "mamba_ssm".
        threads: Threads of the CPU.

    Raises:
        FoveateError: A value is not possible.
    """

    patch_sizes: tuple[int, ...] = (16, 8, 4, 2, 1)
    image_size: int = 224
    hidden_size: int = 64
    num_hidden_layers: int = 2
    repeats: int = 3
    device: str = "cpu"
    dtype: str = "float32"
    scan: str = "torch"
    threads: int = 1

    def __post_init__(self) -> None:
        if not self.patch_sizes or any(side < 1 or self.image_size % side for side in self.patch_sizes):
            raise FoveateError(
                f"patch sizes {list(self.patch_sizes)} must divide the {self.image_size} pixels of a side."
            )
        if self.hidden_size < 1 or self.hidden_size % HEAD:
            raise FoveateError(f"the width must be a multiple of {HEAD}, not {self.hidden_size}.")
        if min(self.num_hidden_layers, self.repeats, self.threads) < 1:
            raise FoveateError("layers, repeats and threads must be at least 1.")
        if self.dtype not in DTYPES:
            raise FoveateError(f"dtype {self.dtype!r} is not known; possible are {', '.join(DTYPES)}.")
        if self.device not in ("cpu", "cuda"):
            raise FoveateError(f"device {self.device!r} is not known; possible are cpu and cuda.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise FoveateError("there is no CUDA device here; use --device cpu.")

    def encoders(self, patch_size: int) -> dict[str, Encoder]:
        """Both encoders at a patch size, with random weights."""
        sizes: dict[str, Any] = {
            "image_size": self.image_size,
            "patch_size": patch_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
        }
        heads: dict[str, Any] = {
            "num_attention_heads": self.hidden_size // HEAD,
            "intermediate_size": 4 * self.hidden_size,
        }
        scan: dict[str, Any] = {"head_dim": HEAD, "scan": self.scan}
        encoders: dict[str, Encoder] = {
            "plain_vit": PlainViTModel(PlainViTConfig(**sizes, **heads)),
            "adventurer": AdventurerModel(AdventurerConfig(**sizes, **scan)),
        }
        return {name: encoder.to(self.device, DTYPES[self.dtype]).eval() for name, encoder in encoders.items()}


def compare(
    settings: PatchScalingSettings,
    path: Path | None = None,
    *,
    resume: bool = False,
    command: str = "",
    report: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Measure both encoders at all patch sizes.

    Args:
        settings: What to measure.
        path: JSON file, replaced in one step after every patch size.
        resume: Keep the patch sizes that the file already has.
        command: The command line, for the file.
        report: Called with a line about every patch size begun.

    Returns:
        The content of the file.

    Raises:
        FoveateError: The file to resume from has other settings or is no result.
    """
    described = json.loads(json.dumps(asdict(settings)))
    described.pop("patch_sizes")
    hardware = profiling.hardware(torch.device(settings.device)) | {"threads": settings.threads}
    (rows,) = earlier(path, described, ("rows",), KIND, hardware) if resume and path is not None else ([],)
    document = profiling.head(KIND, command, hardware, described, NOTE) | {"rows": rows}
    measured = {row["patch_size"] for row in rows}
    with profiling.threads(settings.threads):
        # What libraries allocate at their first call is no memory of an encoder.
        _measure(replace(settings, repeats=1), max(settings.patch_sizes))
        for patch_size in sorted(set(settings.patch_sizes) - measured, reverse=True):
            report(f"patches of {patch_size} px")
            rows.extend(_measure(settings, patch_size))
            if path is not None:
                write_json(path, _concluded(document))
    document = _concluded(document)
    if path is not None:
        write_json(path, document)
    return document


@torch.inference_mode()
def _measure(settings: PatchScalingSettings, patch_size: int) -> list[dict[str, Any]]:
    device, side = torch.device(settings.device), settings.image_size
    pixels = torch.zeros(1, 3, side, side, device=device, dtype=DTYPES[settings.dtype])
    encoders = settings.encoders(patch_size)
    peaks = {name: profiling.peak_memory(partial(encoder, pixels), device) for name, encoder in encoders.items()}
    times: dict[str, list[float]] = {name: [] for name in encoders}
    for turn in range(settings.repeats):
        for name in profiling.in_turn(encoders, turn):
            start = profiling.clock(device)
            encoders[name](pixels)
            times[name].append(profiling.clock(device) - start)
    return [
        {
            "encoder": name,
            "patch_size": patch_size,
            "tokens": encoder.config.output_grid(side, side).size,
            "seconds": statistics.median(times[name]),
            "spread": profiling.spread(times[name]),
            "peak_bytes": peaks[name],
        }
        for name, encoder in encoders.items()
    ]


def _concluded(document: dict[str, Any]) -> dict[str, Any]:
    """Sort the rows, and derive the growth of each encoder and the ratio of both."""
    rows = sorted(document["rows"], key=lambda row: (list(TITLES).index(row["encoder"]), -row["patch_size"]))
    growth, ratios = [], []
    for name in TITLES:
        mine = [row for row in rows if row["encoder"] == name]
        for larger, smaller in pairwise(mine):
            growth.append(
                {
                    "encoder": name,
                    "patch_sizes": [larger["patch_size"], smaller["patch_size"]],
                    **{key: _exponent(larger, smaller, key) for key in ("seconds", "peak_bytes")},
                }
            )
    attention, scan = ({row["patch_size"]: row for row in rows if row["encoder"] == name} for name in TITLES)
    for patch_size, row in attention.items():
        seconds, peaks = ((row[key], scan[patch_size][key]) for key in ("seconds", "peak_bytes"))
        ratios.append(
            {
                "patch_size": patch_size,
                "seconds": seconds[0] / seconds[1],
                "peak_bytes": peaks[0] / peaks[1] if all(peaks) else None,
            }
        )
    return document | {"rows": rows, "growth": growth, "ratios": ratios}


def _exponent(larger: dict[str, Any], smaller: dict[str, Any], key: str) -> float | None:
    """The a of N^a between two rows; None where one was too small to be measured."""
    if not larger[key] or not smaller[key]:
        return None
    return math.log(smaller[key] / larger[key]) / math.log(smaller["tokens"] / larger["tokens"])


def unsteady(document: dict[str, Any]) -> str:
    """Return `profiling.unsteady` of the times."""
    return profiling.unsteady(
        (f"{row['encoder']} at {row['patch_size']} px", row["spread"]["all"]) for row in document["rows"]
    )


def table(document: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of a result."""
    growth = {(row["encoder"], row["patch_sizes"][1]): row for row in document["growth"]}
    header = ["encoder", "patch, px", "tokens", "ms", "growth", "peak, MiB", "growth"]
    rows = []
    for row in document["rows"]:
        peak, grown = row["peak_bytes"], growth.get((row["encoder"], row["patch_size"]), {})
        rows.append(
            [
                TITLES[row["encoder"]],
                str(row["patch_size"]),
                f"{row['tokens']:,}",
                f"{row['seconds'] * 1e3:,.0f}",
                _two_digits(grown.get("seconds")),
                "" if peak is None else f"{peak / 2**20:,.0f}",
                _two_digits(grown.get("peak_bytes")),
            ]
        )
    return header, rows


def sentences(document: dict[str, Any]) -> list[str]:
    """What the ratios say, a sentence each."""
    lines = []
    for row in document["ratios"]:
        memory = "" if row["peak_bytes"] is None else f", with {row['peak_bytes']:.2f} times the peak memory"
        lines.append(
            f"At {row['patch_size']} px the ViT took {row['seconds']:.2f} times as long as Adventurer{memory}."
        )
    return lines


def _two_digits(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def plot(document: dict[str, Any], path: Path) -> None:
    """Plot time and peak memory over tokens, all axes logarithmic.

    Raises:
        FoveateError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FoveateError("the plot needs matplotlib; install it with `pip install foveate[bench]`.") from error
    rows, settings, hardware = document["rows"], document["settings"], document["hardware"]
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    ticks = {row["tokens"]: f"{row['tokens']:,}\n{row['patch_size']} px" for row in rows}
    panels = (("seconds", 1.0, "seconds"), ("peak_bytes", 2**20, "peak memory, MiB"))
    for axes, (key, unit, label) in zip(figure.subplots(1, 2), panels, strict=True):
        for name, marker in zip(TITLES, "os", strict=True):
            mine = [(row["tokens"], row[key] / unit) for row in rows if row["encoder"] == name and row[key]]
            if mine:
                axes.plot(*zip(*mine, strict=True), marker=marker, label=TITLES[name])
        axes.set_xscale("log")
        axes.set_yscale("log")
        low, high = min(ticks), max(ticks)
        bottom, top = axes.get_ylim()
        for exponent, style in ((1, ":"), (2, "--")):  # through the upper right corner
            ends = [top * (tokens / high) ** exponent for tokens in (low, high)]
            axes.plot([low, high], ends, style, color="gray", linewidth=1, zorder=0, label=f"tokens^{exponent}")
        axes.set_ylim(bottom, top)
        axes.set_xticks(list(ticks), list(ticks.values()), fontsize="small")
        axes.minorticks_off()
        axes.set_xlabel("tokens, and side of a patch")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small")
    machine = hardware.get("gpu") or f"{hardware['cpu']}, threads: {hardware['threads']}"
    figure.suptitle(
        f"One image of {settings['image_size']} px, width {settings['hidden_size']}, "
        f"{settings['num_hidden_layers']} blocks, {settings['dtype']}; {machine}",
        fontsize="small",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
