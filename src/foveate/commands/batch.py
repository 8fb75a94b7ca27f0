"""`foveate batch`: answer a file of questions about images and clips."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from foveate.commands.options import (
    AttnImplementation,
    BatchSize,
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
from foveate.console import console, notes, print_json

EXAMPLES = """
    foveate batch questions.jsonl -o answers.jsonl
    foveate batch questions.jsonl -o answers.jsonl --resume
    foveate batch questions.jsonl -o answers.jsonl --model path/to/model --plan divprune:25% --batch-size 16
    foveate batch questions.jsonl -o answers.jsonl --ray --replicas 4 --replica-cpus 2
"""


def batch(
    file: Annotated[
        Path,
        typer.Argument(help='JSONL: {"image": "a.png", "question": "..."} in every line.', show_default=False),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="JSONL file of the answers.", show_default=False)],
    model: Annotated[
        str | None, typer.Option(help="Folder or Hub id of a model.", show_default="the embedded model")
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option(
            help="Plan for lines without one; 'full-model' disables compression.",
            show_default="the plan saved with the model, if any",
        ),
    ] = None,
    batch_size: BatchSize = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of tokens of an answer.")] = 128,
    dtype: Dtype = "auto",
    device: HubDevice = None,
    device_map: DeviceMap = None,
    attn_implementation: AttnImplementation = None,
    revision: Revision = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue with the answers in the file.")] = False,
    ray: OnRay = False,
    replicas: CountOfReplicas = None,
    replica_cpus: ReplicaCPUs = None,
    replica_gpus: ReplicaGPUs = None,
    ray_address: RayAddress = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
) -> None:
    """Answer every question of a JSONL file.

    Each input line has `question`, `image`, `images` or `video` (paths relative to the file's folder), and optionally
    `id`, `plan` and `max_new_tokens`. A plan may choose the frames of videos (scene:16 + divprune:25%). Each output
    line has number, id, question, plan and text, or an error in place of the text. Invalid lines and missing files are
    reported before the first answer.

    Answers are written batch by batch. After an interruption, even a kill, --resume answers the missing questions.

    With --ray, replicas on a Ray cluster answer, and rows are in the order of completion. If a replica fails, another
    one answers its questions.
    """
    from foveate.batch import Output, answer_file, read_questions
    from foveate.integrations.ray.cluster import Model, connected
    from foveate.integrations.ray.files import answer_file as answer_with_replicas
    from foveate.loading import load_apart, locate, plan_asked

    questions = read_questions(file)
    wanted = plan_asked(plan)
    locate(model)
    loading = loading_options(revision, attn_implementation, device_map)
    many = replicas_asked(ray, replicas, replica_cpus, replica_gpus, ray_address)
    with Output(output, questions, resume) as answers:
        before = len(answers.done)
        if before < len(questions):
            columns = TextColumn("answered"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            with Progress(*columns, console=notes) as bar:
                task = bar.add_task("", total=len(questions), completed=before)
                options: dict[str, Any] = {
                    "max_new_tokens": max_new_tokens,
                    "batch_size": batch_size,
                    "progress": lambda count: bar.advance(task, count),
                }
                if many is not None:
                    with connected(many):
                        settings = Model(model, plan, dtype, device, loading)
                        answer_with_replicas(settings, questions, answers, many, **options)
                else:
                    net, processor, attached = load_apart(model, wanted, dtype=dtype, device=device, **loading)
                    answer_file(net, processor, questions, answers, plan=attached, **options)
        summary = {"questions": len(questions), "answered_now": len(answers.done) - before, "errors": answers.errors}
    if as_json:
        print_json({**summary, "output": str(output)})
    else:
        errors = f", {summary['errors']} with an error in place of an answer" if summary["errors"] else ""
        console.print(f"{summary['questions']} answers in {output}{errors}", markup=False)
