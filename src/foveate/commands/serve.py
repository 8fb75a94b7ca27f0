"""`foveate serve`: OpenAI-compatible server of one model."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from foveate.commands.options import (
    AttnImplementation,
    CountOfReplicas,
    DeviceMap,
    Dtype,
    HubDevice,
    OnRay,
    RayAddress,
    ReplicaCPUs,
    ReplicaGPUs,
    Revision,
    loading_options,
    replicas_asked,
)
from foveate.console import notes
from foveate.core.errors import FoveateError

EXAMPLES = """
    foveate serve
    foveate serve path/to/model --plan divprune:25%
    foveate serve owner/name --plan "fastervlm:192 + fastv:50%@2" --port 9000
    foveate serve --files ./pictures --allow-host images.example.org
    foveate serve --cors-origin http://localhost:3000
    foveate serve --ray --replicas 4 --replica-cpus 2
    curl localhost:8000/v1/chat/completions -d @request.json
"""


def serve(
    model: Annotated[
        str | None, typer.Argument(help="Folder or Hub id of a model.", show_default="the embedded model")
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option(
            help="Plan for requests without one; 'full-model' disables compression.",
            show_default="the plan saved with the model, if any",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 selects a free one.")] = 8000,
    name: Annotated[str | None, typer.Option(help="Model name for clients.", show_default="the model's name")] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="FOVEATE_API_KEY", help="Bearer token that clients must send.", show_default=False),
    ] = None,
    files: Annotated[
        Path | None, typer.Option(help="Folder whose image and video files requests may use.", show_default=False)
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Host that images and videos may be fetched from, with its port if not standard."),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Origin of web pages that may send requests, such as https://example.org; * for all.",
            show_default=False,
        ),
    ] = None,
    dtype: Dtype = "auto",
    device: HubDevice = None,
    device_map: DeviceMap = None,
    attn_implementation: AttnImplementation = None,
    revision: Revision = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default=False)] = None,
    batch: Annotated[int, typer.Option(min=1, help="Maximum batch size.")] = 8,
    queue: Annotated[
        int, typer.Option(min=1, help="Maximum number of waiting requests; others are asked to retry.")
    ] = 256,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum number of tokens of an answer; larger requests are capped.")
    ] = 512,
    max_images: Annotated[int, typer.Option(min=1, help="Maximum number of images per request.")] = 16,
    max_pixels: Annotated[int, typer.Option(min=1, help="Maximum number of pixels per image.")] = 50_000_000,
    max_clips: Annotated[int, typer.Option(min=1, help="Maximum number of clips per request.")] = 4,
    max_clip_size: Annotated[int, typer.Option(min=1, help="Maximum size of a video file in MiB.")] = 64,
    max_clip_seconds: Annotated[int, typer.Option(min=1, help="Maximum length of a clip in seconds.")] = 600,
    max_clip_frames: Annotated[int, typer.Option(min=1, help="Maximum number of frames read of a clip.")] = 64,
    max_body: Annotated[int, typer.Option(min=1, help="Maximum size of a request in MiB.")] = 32,
    drain: Annotated[int, typer.Option(min=0, help="Seconds that open requests may take after SIGTERM.")] = 30,
    ray: OnRay = False,
    replicas: CountOfReplicas = None,
    replica_cpus: ReplicaCPUs = None,
    replica_gpus: ReplicaGPUs = None,
    ray_address: RayAddress = None,
) -> None:
    """Serve a model over HTTP with an OpenAI-compatible API.

    POST /v1/chat/completions accepts `image_url` parts, and `video_url` parts for models with video: data URIs, files
    under --files and addresses on --allow-host. A plan may choose the frames of clips ("scene:16 + divprune:25%").
    Streaming is supported. A request may set its own plan, {"foveate": {"plan": "divprune:64"}}, or another budget,
    {"foveate": {"budget": "10%"}}; the usage of the response reports how many visual tokens were read and saved.
    /v1/models, /health, /metrics (Prometheus), /docs and /openapi.json are available too.

    Waiting requests are answered in batches. After SIGTERM open requests are completed. With --ray, replicas on a Ray
    cluster answer, and failed ones are replaced.
    """
    try:
        import uvicorn

        from foveate.serving import (
            TRANSPORT,
            Engine,
            Limits,
            Sources,
            build,
            check_key,
            check_origins,
            listening_socket,
        )
    except ImportError as error:
        raise FoveateError(f"a server needs {error.name}: pip install 'foveate[serve]'.") from error
    import torch

    from foveate.core.plan import Plan
    from foveate.integrations.ray.cluster import Model, connected
    from foveate.loading import load_apart, plan_asked, plan_beside

    limits = Limits(
        batch=batch,
        queue=queue,
        tokens=max_tokens,
        images=max_images,
        pixels=max_pixels,
        clips=max_clips,
        clip_bytes=max_clip_size * 2**20,
        clip_seconds=max_clip_seconds,
        clip_frames=max_clip_frames,
        body=max_body * 2**20,
    )
    sources = Sources(files, allow_host or (), limits)
    check_origins(cors_origin or ())  # fail before a model is loaded
    check_key(api_key)
    wanted = plan_asked(plan)
    many = replicas_asked(ray, replicas, replica_cpus, replica_gpus, ray_address)
    if many is not None and threads is not None:
        raise FoveateError("--threads works without --ray only: replicas use --replica-cpus.")
    options = loading_options(revision, attn_implementation, device_map)
    called = name or ("embedded" if model is None else Path(os.path.normpath(model)).name)
    with ExitStack() as ending:
        if many is not None:
            from foveate.integrations.ray.pool import Pool, deployed

            default = wanted if wanted is None or isinstance(wanted, Plan) else plan_beside(model, revision)
            ending.enter_context(connected(many))
            known = f"foveate-{called}-{socket.gethostname()}-{port}"
            handle = ending.enter_context(deployed(Model(model, plan, dtype, device, options), many, limits, known))
            answers = Pool(handle, known, many, limits)
        else:
            if threads is not None:
                torch.set_num_threads(threads)
            net, processor, default = load_apart(model, wanted, dtype=dtype, device=device, **options)
            answers = Engine(net, processor, limits)
        app = build(answers, sources, name=called, plan=default, api_key=api_key, origins=cors_origin or ())
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            log_level="warning",
            timeout_graceful_shutdown=drain,
            timeout_keep_alive=15,
            **TRANSPORT,
        )
        server = uvicorn.Server(config)
        listening = listening_socket(config)
        address, bound = listening.getsockname()[:2]
        by = "" if many is None else f", {many.count} replica{'' if many.count == 1 else 's'},"
        shown = "no plan" if default is None else default
        message = f"{called} with {shown}{by} at http://{address}:{bound}/v1 (Ctrl-C stops it)"
        notes.print(message, markup=False, soft_wrap=True)
        # uvicorn drains on SIGTERM and then raises it again, although the server has ended normally.
        signal.signal(signal.SIGTERM, lambda *_: None)
        server.run(sockets=[listening])
