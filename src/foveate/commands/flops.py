"""`foveate flops`: cost of a model with and without a plan, computed from its configuration."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

import foveate
from foveate.commands.options import Json, given_options, refuse_others
from foveate.console import console, print_json
from foveate.core.errors import FoveateError
from foveate.published import recorded

if TYPE_CHECKING:
    from foveate.cost import Model, ProcessedImage

EXAMPLES = """
    foveate flops --model llava-1.5-7b --plan fastv:50%@2
    foveate flops --model qwen2.5-vl-7b --image 1920x1080 --plan divprune:25%
    foveate flops --model llava-next-7b --plan "fastervlm:640 + pyramiddrop:50%@8,16,24" --json
    foveate flops --model path/or/hub-id --tokens 1000 --text 200
    foveate flops --papers
"""

#: Units of large numbers.
UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def flops(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(
            help="Name of a released model (llava-1.5-7b, qwen2.5-vl-7b, ...), folder or Hub id.",
            show_default="the embedded model",
        ),
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option(help="A plan, such as fastervlm:192 or fastv:50%@2.", show_default="the full model"),
    ] = None,
    image: Annotated[str, typer.Option(help="Width and height of the image in pixels.")] = "1024x768",
    tokens: Annotated[
        int | None,
        typer.Option(
            help="Number of visual tokens instead of an image; then only the language model is counted, from these on."
        ),
    ] = None,
    text: Annotated[int, typer.Option(help="Number of text tokens of the prompt.")] = 64,
    dtype: Annotated[
        str, typer.Option(help="Data type of the KV cache: float32, bfloat16, float16, int8 or int4.")
    ] = "bfloat16",
    attention: Annotated[
        str,
        typer.Option(
            help="Counting of attention in the language model: full (as FLOP counters do), causal (half) or none."
        ),
    ] = "full",
    head: Annotated[str, typer.Option(help="Positions counted in the output layer: last, all or none.")] = "last",
    papers: Annotated[bool, typer.Option("--papers", help="Only compare with published numbers.")] = False,
    as_json: Json = False,
) -> None:
    """Compute FLOPs, MACs and KV cache of an image and a prompt, with and without a plan.

    Only the configuration is loaded, and no model runs. The number of visual tokens is that of the model's processor
    for the image size. Matrix products and attention are counted, as in torch.utils.flop_counter; the token selection
    itself is not. Where a connector of foveate has the language model read the question first, or has layers that
    fuse text with the image, these are parts of their own.
    """
    if papers:
        refuse_others(context, "--papers", "papers", "as_json")
        _papers(as_json)
        return
    if tokens is not None and "image" in given_options(context):
        raise FoveateError("--image would have no effect with --tokens: leave out one or the other.")
    foveate.register()
    document = describe(model, plan, image, tokens, text, dtype, attention, head)
    if as_json:
        print_json(document)
    else:
        _print(document)


def describe(
    name: str | None = None,
    plan: str | None = None,
    image: str = "1024x768",
    tokens: int | None = None,
    text: int = 64,
    dtype: str = "bfloat16",
    attention: str = "full",
    head: str = "last",
) -> dict[str, Any]:
    """Return what `foveate flops` prints as plain JSON values.

    Raises:
        FoveateError: the model, the plan, the image or a choice is not possible.
    """
    from foveate import cost
    from foveate.core.plan import Plan

    convention = _convention(attention, head)
    if dtype not in cost.DTYPES:
        raise FoveateError(f"dtype {dtype!r} is not one of {', '.join(cost.DTYPES)}.")
    if text < 0:
        raise FoveateError(f"{text} text tokens are not possible; the minimum is 0.")
    named = cost.named(name)
    shape = cost.shape_of(named.config)
    shape, processed, size = _processed(named, shape, image, tokens)
    chosen = Plan.of(plan) if plan else None
    runs = {"full_model": cost.follow(None, shape, processed), "plan": cost.follow(chosen, shape, processed)}
    costs = {key: cost.cost(shape, run, text, convention) for key, run in runs.items()}
    bytes_of = cost.DTYPES[dtype]
    before, after = costs["full_model"], costs["plan"]
    rows = [(part, before.parts[part], after.parts[part]) for part in before.parts]
    rows = [row for row in rows if any(row[1:])]
    rows += [("to the first token", before.total, after.total), ("each further token", before.decode, after.decode)]
    return {
        "model": named.name,
        "type": shape.kind,
        "plan": None if chosen is None else str(chosen),
        "image": size,
        "patches": runs["plan"].image.patches if size else None,
        "full_model_patches": processed.patches if size else None,
        "sequences": len(processed.grids),
        "tokens": processed.tokens,
        "tokens_per_layer": list(runs["plan"].kept),
        "text": text,
        "attention": attention,
        "head": head,
        "parts": [
            {
                "part": part,
                "flops": now,
                "macs": now // 2,
                "full_model_flops": was,
                "share": now / was if was else None,
            }
            for part, was, now in rows
        ],
        "kv": {
            "dtype": dtype,
            "bytes": int(after.cached * bytes_of),
            "full_model_bytes": int(before.cached * bytes_of),
            "image_bytes": int(after.cached_image * bytes_of),
            "share": after.cached / before.cached,
        },
    }


def _convention(attention: str, head: str) -> Any:
    from foveate.cost import Convention

    kinds: dict[str, tuple[str, ...]] = {"attention": ("full", "causal", "none"), "head": ("last", "all", "none")}
    for name, value in (("attention", attention), ("head", head)):
        if value not in kinds[name]:
            raise FoveateError(f"--{name} {value!r} is not one of {', '.join(kinds[name])}.")
    return Convention(attention=attention, head=head)  # ty: ignore[invalid-argument-type]


def _processed(
    named: Any, shape: Model, image: str, tokens: int | None
) -> tuple[Model, ProcessedImage, list[int] | None]:
    """Return the model (without encoder if tokens are given), the processed image and the image size."""
    from foveate import cost

    if tokens is not None:
        if tokens < 1:
            raise FoveateError(f"{tokens} visual tokens are not possible; the minimum is 1.")
        return cost.Model(shape.kind, shape.text), cost.ProcessedImage((), tokens), None
    match = re.fullmatch(r"\s*(\d{1,9})\s*[xX×]\s*(\d{1,9})\s*", image)
    if match is None:
        raise FoveateError(f"--image {image!r} is not a size; write width x height in pixels, such as 1024x768.")
    width, height = int(match[1]), int(match[2])
    return shape, cost.processed_image(named.config, width, height, named.images), [width, height]


def _print(document: dict[str, Any]) -> None:
    from rich.table import Table

    size = document["image"]
    source = f"{size[0]} x {size[1]} px, " if size else ""
    if document["patches"]:
        sequences = f" in {document['sequences']} sequences" if document["sequences"] > 1 else ""
        source += f"{document['full_model_patches']:,} patches{sequences}, "
    console.print(
        f"{document['model']}: {source}{document['tokens']:,} visual tokens, {document['text']} of text", markup=False
    )
    if document["plan"]:
        reduced = f"{document['patches']:,} patches, " if document["patches"] != document["full_model_patches"] else ""
        console.print(f"{document['plan']}: {reduced}{spans(document['tokens_per_layer'])}", markup=False)
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("part")
    for title in ("FLOPs", "MACs", *(("full model", "share") if document["plan"] else ())):
        table.add_column(title, justify="right")
    for row in document["parts"]:
        cells = [shown(row["flops"]), shown(row["macs"])]
        if document["plan"]:
            cells += [shown(row["full_model_flops"]), "-" if row["share"] is None else f"{row['share']:.1%}"]
        table.add_row(row["part"], *cells)
    kv = document["kv"]
    cells = [f"{kv['bytes'] / 2**20:,.1f} MiB", ""]
    if document["plan"]:
        cells += [f"{kv['full_model_bytes'] / 2**20:,.1f} MiB", f"{kv['share']:.1%}"]
    table.add_row(f"cache, {kv['dtype']}", *cells)
    console.print(table)


def spans(kept: list[int]) -> str:
    """Format the tokens of the layers: `576 in layers 0-1, 288 in layers 2-31`."""
    parts, start = [], 0
    for layer in range(1, len(kept) + 1):
        if layer == len(kept) or kept[layer] != kept[start]:
            last = layer - 1
            where = f"layers {start}-{last}" if last > start else f"layer {start}"
            parts.append(f"{kept[start]:,} in {where}")
            start = layer
    return ", ".join(parts)


def shown(count: float) -> str:
    """Format a number of operations with its unit: 8.91 T."""
    for unit, letter in UNITS:
        if count >= unit:
            value = count / unit
            return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f} {letter}"
    return f"{count:.0f}"


def _papers(as_json: bool) -> None:
    from rich.table import Table

    published = recorded()
    if as_json:
        print_json({"claims": [claim.as_json() for claim in published]})
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title, justify in (("paper", "left"), ("what", "left"), ("published", "right"), ("here", "right"),
                           ("difference", "right")):  # fmt: skip
        table.add_column(title, justify=justify, overflow="fold")
    for claim in published:
        table.add_row(claim.paper, claim.what, claim.shown(claim.published), claim.shown(claim.ours), claim.difference)
    console.print(table)
