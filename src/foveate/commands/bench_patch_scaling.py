"""`foveate bench patch-scaling`: time and memory of encoders as patches become smaller."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from foveate.commands.lists import numbers_in
from foveate.commands.options import BenchDtype, Device, ResultAsJson
from foveate.console import command_line, console, notes, print_json

EXAMPLES = """
    foveate bench patch-scaling --patch-sizes 16,8,4
    foveate bench patch-scaling --plot patch-scaling.png
    foveate bench patch-scaling --device cuda --width 256 --layers 12 --scan mamba_ssm
"""


def patch_scaling(
    patch_sizes: Annotated[str, typer.Option(help="Comma-separated sides of patches in pixels.")] = "16,8,4,2,1",
    image_size: Annotated[int, typer.Option(help="Side of the image in pixels.")] = 224,
    width: Annotated[int, typer.Option(help="Width of both encoders, a multiple of 64.")] = 64,
    layers: Annotated[int, typer.Option(help="Blocks of both encoders.")] = 2,
    repeats: Annotated[int, typer.Option(help="Timed turns after a warm-up.")] = 3,
    device: Device = None,
    dtype: BenchDtype = None,
    scan: Annotated[
        str, typer.Option(help="Scan of Adventurer: torch, or mamba_ssm, the kernel of that package on a GPU.")
    ] = "torch",
    threads: Annotated[int | None, typer.Option(help="CPU threads; PyTorch's default.", show_default=False)] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="JSON file of the result; benchmarks/results/patch-scaling-DEVICE.json.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Skip the patch sizes that the file has.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Also save a plot to this file.", show_default=False)] = None,
    as_json: ResultAsJson = False,
) -> None:
    """Measure a plain ViT and Adventurer at smaller and smaller patches: time, peak memory, and how they grow.

    At 1 px every pixel of the image is a token: 50,176 of 224 x 224. The encoders are narrower than those of the paper,
    so that this takes minutes on a CPU: at 1 px the attention of one block of width 64 has 0.6 TFLOP.
    """
    import torch

    from foveate.benchmark import patch_scaling as benchmark
    from foveate.training.precision import bfloat16_pays

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    settings = benchmark.PatchScalingSettings(
        patch_sizes=numbers_in(patch_sizes, "--patch-sizes"),
        image_size=image_size,
        hidden_size=width,
        num_hidden_layers=layers,
        repeats=repeats,
        device=device,
        dtype=dtype or ("bfloat16" if device == "cuda" and bfloat16_pays(device) else "float32"),
        scan=scan,
        threads=torch.get_num_threads() if threads is None else threads,
    )
    output = output or Path("benchmarks/results") / f"patch-scaling-{device}.json"
    document = benchmark.compare(settings, output, resume=resume, command=command_line(), report=notes.print)
    if plot is not None:
        benchmark.plot(document, plot)
    if said := benchmark.unsteady(document):
        notes.print(said, markup=False)
    if as_json:
        print_json(document)
        return
    header, rows = benchmark.table(document)
    shown = Table(*(Column(name, no_wrap=True) for name in header), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
    for line in benchmark.sentences(document):
        console.print(f"- {line}")
    console.print(document["note"], markup=False)
    console.print(f"written: {output}")
