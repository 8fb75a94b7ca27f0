"""`foveate bench encoders` and `foveate bench speed`: cost of encoders and plans."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from foveate.commands.options import BenchAttention, BenchDtype, Device, ResultAsJson
from foveate.console import command_line, console, notes, print_json
from foveate.core.errors import FoveateError

EXAMPLES = """
    foveate bench encoders --quick
    foveate bench encoders --sizes 512,768,1024 --repeats 5 -o benchmarks/results/encoders-cpu.json --resume
    foveate bench encoders --device cuda --attention flash_attention_2
    foveate bench speed --quick
    foveate bench speed --models llava-1.5 --methods divprune,hiprune --batch 1,8
    foveate bench speed --models path/or/hub-id --plans "fastervlm:192 + pool:50%" --image page.png
    foveate bench speed --device cuda --attention flash_attention_2 --repeats 10
    foveate bench speed --frames 16,64,256
    foveate bench speed --frames 16,64 --encoder-blocks 1
"""


def encoders(
    sizes: Annotated[
        str | None,
        typer.Option(help="Comma-separated sides of the square images in pixels; 512,768,1024.", show_default=False),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            "--encoders",
            help="Comma-separated encoders: vit-uhd, moonvit, qwen2.5-vl, siglip2; all.",
            show_default=False,
        ),
    ] = None,
    repeats: Annotated[int | None, typer.Option(help="Timed turns after a warm-up; 5.", show_default=False)] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="256 px and 2 turns unless set otherwise: about a minute and a half on two cores."
        ),
    ] = False,
    device: Device = None,
    dtype: BenchDtype = None,
    attention: BenchAttention = "sdpa",
    text_tokens: Annotated[int, typer.Option(help="Number of text tokens after the image.")] = 32,
    threads: Annotated[int | None, typer.Option(help="CPU threads; PyTorch's default.", show_default=False)] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="JSON file of the result; benchmarks/results/encoders-DEVICE.json.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Skip the sizes that the file has.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Also save a plot to this file.", show_default=False)] = None,
    as_json: ResultAsJson = False,
) -> None:
    """Compare ViT-UHD with MoonViT, Qwen2.5-VL's encoder and SigLIP2: tokens, FLOPs, time, memory, first token.

    Models have their real sizes and random weights, on which cost does not depend. All share a language model of the
    size of Qwen2-0.5B, on a GPU Qwen2-7B. The file is written after every image size, so that --resume continues after
    an interruption. In float32 on a CPU this takes about 16 GiB of memory and, at 1024 px, minutes per turn.
    """
    import torch

    from foveate.benchmark import encoders as benchmark
    from foveate.benchmark.competitors import Geometry
    from foveate.training.precision import bfloat16_pays

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    settings = benchmark.EncoderSettings(
        sizes=_numbers(sizes) if sizes else ((256,) if quick else (512, 768, 1024)),
        encoders=tuple(name.strip() for name in only.split(",")) if only else tuple(benchmark.COMPETITORS),
        repeats=(2 if quick else 5) if repeats is None else repeats,
        device=device,
        dtype=dtype or ("bfloat16" if device == "cuda" and bfloat16_pays(device) else "float32"),
        attention=attention,
        text_tokens=text_tokens,
        threads=torch.get_num_threads() if threads is None else threads,
        geometry=benchmark.gpu_geometry() if device == "cuda" else Geometry(),
    )
    output = output or Path("benchmarks/results") / f"encoders-{device}.json"
    results = benchmark.compare(settings, output, resume=resume, command=command_line(), report=notes.print)
    if plot is not None:
        benchmark.plot(results, plot)
    if said := benchmark.unsteady(results):
        notes.print(said, markup=False)
    if as_json:
        print_json(results)
        return
    header, rows = benchmark.table(results)
    shown = Table(*(Column(name, overflow="fold") for name in header), title=results["machine"])
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
    for claim in results["claims"]:
        measured = "not measured" if claim["measured"] is None else f"{claim['measured']:.2f} here"
        console.print(f"{claim['claim']}: {claim['ratio']} in the paper, {measured}.")
    for line in results["explanation"]:
        console.print(f"- {line}")
    console.print(f"written: {output}")


def speed(
    models: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated models: llava-1.5, llava-next, qwen2.5-vl (real sizes, random weights), "
            "embedded, folders "
            "and Hub ids; the first three, with --quick embedded.",
            show_default=False,
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(help="Comma-separated methods, as listed by `foveate methods`; all.", show_default=False),
    ] = None,
    budgets: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated budgets of the methods, such as 64,25%; those of each model.", show_default=False
        ),
    ] = None,
    plans: Annotated[
        list[str] | None,
        typer.Option(
            help="Plans, separated by ; or in repeated options: 'divprune:64; fastervlm:192 + pool:50%'.",
            show_default=False,
        ),
    ] = None,
    frames: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated numbers of frames, such as 16,64,256: measure clips of 224 x 224 px, and all methods "
            "for clips, on qwen2.5-vl.",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[str, typer.Option(help="Comma-separated batch sizes: 1,8.")] = "1",
    repeats: Annotated[int | None, typer.Option(help="Timed turns after a warm-up; 3.", show_default=False)] = None,
    new_tokens: Annotated[
        int | None, typer.Option(help="Tokens to generate per turn; 16, with --quick 8.", show_default=False)
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The embedded model at 25 % unless set otherwise.")] = False,
    text: Annotated[
        str | None,
        typer.Option(
            help="Language model of random-weight models: qwen2-0.5b or qwen2-7b; the larger one on a GPU.",
            show_default=False,
        ),
    ] = None,
    encoder_blocks: Annotated[
        int | None,
        typer.Option(
            help="Blocks of the vision encoders of random-weight models; all. With one, clips can be measured on a "
            "CPU, and the cost of selection shows more: efficiencies are lower bounds.",
            show_default=False,
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(help="Image for pretrained models; a rendered receipt.", show_default=False),
    ] = None,
    question: Annotated[str, typer.Option(help="Question for pretrained models.")] = "What is the total?",
    device: Device = None,
    dtype: Annotated[
        str,
        typer.Option(
            help="Data type: auto, float32, bfloat16 or float16; auto is bfloat16 for random weights, "
            "and float32 on a processor without bfloat16."
        ),
    ] = "auto",
    attention: BenchAttention = "sdpa",
    text_tokens: Annotated[
        int, typer.Option(help="Number of text tokens after the image, for random-weight models.")
    ] = 32,
    threads: Annotated[int | None, typer.Option(help="CPU threads; PyTorch's default.", show_default=False)] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="JSON file of the result; benchmarks/results/speed-DEVICE.json.", show_default=False
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Skip what the file has.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Also save a plot to this file.", show_default=False)] = None,
    as_json: ResultAsJson = False,
) -> None:
    """Measure the speed of plans: time of every part of an answer, peak memory, KV cache and FLOPs.

    Controls are the full model, an equal number of random tokens, and an image reduced to that number of tokens. All
    plans run in turns in one process. Random-weight models have a language model of the size of Qwen2-0.5B, on a GPU
    Qwen2-7B. The file is written after every budget, so that --resume continues after an interruption.
    """
    import torch

    from foveate.benchmark import speed as benchmark
    from foveate.commands.lists import names_in, numbers_in, plans_in

    if budgets and plans and not methods:
        raise FoveateError("--budgets are for --methods: name some, or give the plans their budgets.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    settings = benchmark.SpeedSettings(
        models=names_in(models) or _models(quick, clips=frames is not None),
        frames=numbers_in(frames, "--frames") if frames else (),
        methods=names_in(methods),
        budgets=names_in(budgets) or (("25%",) if quick else ()),
        plans=plans_in(plans),
        batches=numbers_in(batch, "--batch"),
        repeats=3 if repeats is None else repeats,
        new_tokens=(8 if quick else 16) if new_tokens is None else new_tokens,
        text_tokens=text_tokens,
        device=device,
        dtype=dtype,
        attention=attention,
        threads=torch.get_num_threads() if threads is None else threads,
        text=text or ("qwen2-7b" if device == "cuda" else "qwen2-0.5b"),
        encoder_blocks=encoder_blocks,
        image=None if image is None else str(image),
        question=question,
    )
    output = output or Path("benchmarks/results") / f"speed-{device}.json"
    command = command_line()
    results = benchmark.run(settings, output, resume=resume, command=command, report=notes.print)
    if plot is not None:
        benchmark.plot(results, plot)
    if said := benchmark.unsteady(results):
        notes.print(said, markup=False)
    if as_json:
        print_json(results)
        return
    header, rows = benchmark.table(results, brief=console.width < 160)
    wraps = {"model, budget", "plan"}
    columns = (Column(name, overflow="fold", no_wrap=name not in wraps) for name in header)
    shown = Table(*columns, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
    for line in results["impossible"]:
        console.print(f"{line['model']}, {line['plan']}: {line['reason']}", markup=False)
    console.print(f"written: {output}")


def _models(quick: bool, *, clips: bool) -> tuple[str, ...]:
    """Return the models that are measured where none are named."""
    from foveate.benchmark.speed import SHAPES

    if clips:
        return tuple(name for name, shape in SHAPES.items() if shape.clip is not None)
    return ("embedded",) if quick else tuple(SHAPES)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise FoveateError(f"--sizes {text!r} must be comma-separated whole numbers, such as 512,768.") from None
