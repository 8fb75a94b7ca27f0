"""`foveate app`: browser app."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveate import shipped
from foveate.app.examples import save_example_clip
from foveate.console import notes
from foveate.core.errors import FoveateError

if TYPE_CHECKING:
    from foveate.core.plan import Plan

EXAMPLES = """
    foveate app
    foveate app --model path/or/hub-id --plan "fastervlm:25%"
    foveate app --examples ./pictures --port 9000
"""

#: Files of a folder of examples that are offered, and what is asked about each.
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
QUESTION = "What is in the image?"


def app(
    model: Annotated[
        str | None, typer.Option(help="Folder or Hub id of a model.", show_default="the embedded model")
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option(help="Initial plan.", show_default="the plan saved with the model, or one that fits the examples"),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 selects a free one.")] = 7860,
    examples: Annotated[
        Path | None,
        typer.Option(help="Folder of example images.", show_default="the images of the package"),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of tokens of an answer.")] = 128,
    dtype: Annotated[str, typer.Option(help="Data type of the weights: auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[
        str | None, typer.Option(help="Device: cpu, cuda, cuda:1.", show_default="the first GPU, or the CPU")
    ] = None,
) -> None:
    """Start a browser app that asks a model with and without a plan and shows every token.

    Questions are about images, and about clips where the model reads them. The page shows the answers side by side,
    also of random tokens and of a smaller image or fewer frames; the tokens that were kept,
    merged and dropped (click a token for details); token counts and times of every part; and the same question as
    Python and shell code. Tokens can be chosen by hand. By default it is local: it listens on 127.0.0.1, loads nothing
    from other servers and sends no telemetry. Requests are answered one at a time.
    """
    from foveate.core.plan import Plan

    offered_images = _examples(examples)
    initial = None if plan is None else Plan.of(plan)
    if importlib.util.find_spec("gradio") is None:
        raise FoveateError("the app needs gradio: pip install 'foveate[app]'.")
    # gradio reads these when it is imported. Uploads are deleted when the command ends.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="foveate-app-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        # Before the model is loaded, so that a port in use fails at once.
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family) as listening:
            _serve(listening, model, initial, offered_images, Path(uploads), max_new_tokens, dtype, device)


def _serve(
    listening: socket.socket,
    model: str | None,
    plan: Plan | None,
    examples: list[tuple[str, str]],
    uploads: Path,
    max_new_tokens: int,
    dtype: str,
    device: str | None,
) -> None:
    import uvicorn
    from PIL import Image

    from foveate.answering import ask
    from foveate.app.choices import choices
    from foveate.app.page import application, build
    from foveate.app.session import reads_clips
    from foveate.core.plan import Plan
    from foveate.loading import load
    from foveate.runtime import compress, handle_of

    net, processor = load(model, dtype=dtype, device=device, plan="saved" if plan is None else None)
    handle = handle_of(net)
    if handle is not None:
        plan = handle.plan
        handle.restore()  # the page attaches a plan for one question at a time
    elif plan is None and model is None:
        plan = Plan.of(shipped.demonstration_plan())
    elif plan is not None and plan.for_model is not None:
        compress(net, plan.for_model).restore()  # an unsupported plan fails here, not at the first question
    # The first run of a process is slow; the first visitor shall not wait for it.
    ask(Image.new("RGB", (224, 224), "white"), "?", (net, processor), max_new_tokens=2)
    page = build(
        (net, processor),
        model,
        choices(net),
        plan=None if plan is None else str(plan),
        examples=examples,
        clip_examples=[save_example_clip(uploads)] if reads_clips((net, processor)) else None,
        max_new_tokens=max_new_tokens,
    )
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    notes.print(f"the app runs at http://{shown}:{port} (Ctrl-C stops it)", markup=False)
    uvicorn.Server(uvicorn.Config(application(page), log_level="warning", timeout_graceful_shutdown=1)).run([listening])


def _examples(folder: Path | None) -> list[tuple[str, str]]:
    """Return images of a folder with a question; by default the examples of the package with theirs."""
    if folder is None:
        return [
            (str(shipped.example(one.name)), question) for one in shipped.examples() for question, _ in one.questions
        ]
    if not folder.is_dir():
        raise FoveateError(f"there is no folder {str(folder)!r} to take examples from.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)
    if not paths:
        raise FoveateError(f"{str(folder)!r} has no images: foveate app offers files ending in {', '.join(ENDINGS)}.")
    return [(str(path), QUESTION) for path in paths]
