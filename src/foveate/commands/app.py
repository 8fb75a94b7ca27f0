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

from foveate.console import notes
from foveate.core.errors import FoveateError

if TYPE_CHECKING:
    from foveate.core.plan import Plan

EXAMPLES = """
    foveate app
    foveate app --model path/or/hub-id --plan "fastervlm:25%"
    foveate app --examples ./pictures --port 9000
"""

#: Questions that go with the images in examples/ of the source tree.
QUESTIONS = {"receipt.png": "What is the total?", "chart.png": "Which month had the most visitors?"}

#: Files of a folder of examples that are offered.
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


def app(
    model: Annotated[
        str | None, typer.Option(help="Folder or Hub id of a model.", show_default="the embedded model")
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option(help="Plan that stands there at first.", show_default="the plan saved beside the model, if any"),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 7860,
    examples: Annotated[
        Path | None,
        typer.Option(
            help="Folder of images to offer.", show_default="examples/, where foveate runs from its source tree"
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Cut answers off after this many tokens.")] = 128,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1.", show_default="the first GPU, or the CPU")
    ] = None,
) -> None:
    """Start a browser app that asks a model with and without a plan and shows every token.

    The page shows both answers side by side, which tokens were kept, merged and left out (a click on one says where it
    comes from), tokens and time of every part, and the same question as a line of Python and of the command line. It
    is for this machine: it listens at 127.0.0.1, loads nothing from elsewhere and reports to nobody. Questions of
    several visitors are answered one after the other.
    """
    from foveate.core.plan import Plan

    offered_images = _examples(examples)
    own = None if plan is None else Plan.of(plan)
    if importlib.util.find_spec("gradio") is None:
        raise FoveateError("the playground needs gradio: pip install 'foveate[app]'.")
    # gradio reads these when it is imported. What visitors upload is gone when the command ends.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="foveate-app-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        # Before the model is loaded: that a port is taken should not have to wait for it.
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family) as listening:
            _serve(listening, model, own, offered_images, max_new_tokens, dtype, device)


def _serve(
    listening: socket.socket,
    model: str | None,
    own: Plan | None,
    examples: list[tuple[str, str]],
    max_new_tokens: int,
    dtype: str,
    device: str | None,
) -> None:
    import uvicorn
    from PIL import Image

    from foveate.answering import ask
    from foveate.app.choices import choices
    from foveate.app.page import application, build
    from foveate.loading import load
    from foveate.runtime import compress, handle_of

    net, processor = load(model, dtype=dtype, device=device, plan="saved" if own is None else None)
    handle = handle_of(net)
    if handle is not None:
        own = handle.plan
        handle.restore()  # the page attaches a plan for one question at a time
    elif own is not None:
        compress(net, own).restore()  # a plan that cannot act on this model ends here, not at the first question
    # The first run of a process is slow, and would make the first comparison unfair.
    ask(Image.new("RGB", (224, 224), "white"), "?", (net, processor), max_new_tokens=2)
    page = build(
        (net, processor),
        model,
        choices(net),
        plan=None if own is None else str(own),
        examples=examples,
        max_new_tokens=max_new_tokens,
    )
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    notes.print(f"the playground is at http://{shown}:{port} (Ctrl-C ends)", markup=False)
    uvicorn.Server(uvicorn.Config(application(page), log_level="warning", timeout_graceful_shutdown=1)).run([listening])


def _examples(folder: Path | None) -> list[tuple[str, str]]:
    """Return images of a folder with questions; by default those of the source tree, if foveate runs from one."""
    given = folder
    folder = Path(__file__).parents[3] / "examples" if folder is None else folder
    if not folder.is_dir():
        if given is None:
            return []
        raise FoveateError(f"there is no folder {str(given)!r} to take examples from.")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)
    if given is not None and not found:
        raise FoveateError(f"{str(given)!r} has no images: foveate app offers files ending in {', '.join(ENDINGS)}.")
    return [(str(path), QUESTIONS.get(path.name, "What is in the image?")) for path in found]
