"""Batch inference over a file of questions with Ray Data: `answer_file`.

The file of answers is written here, by one process, as it is without Ray (`foveate.batch`): replicas only compute. A
batch of questions is one block of Ray Data, so its answers come back, and are on the disk, as soon as it is done. What
a replica that dies was working on is given to another one.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from foveate.batch import Output, Question, answer_questions, batches
from foveate.core.errors import FoveateError
from foveate.integrations.ray.cluster import Model, Replicas, sentence, take_threads

#: How often a batch is tried on another replica after its own has died: questions may be what kills them.
TRIES = 3


class BatchWorker:
    """Ray Data worker that answers batches of questions.

    Args:
        model: To load.
        max_new_tokens: Maximum number of tokens of an answer.
        cpus: That the replica has.
    """

    def __init__(self, model: Model, max_new_tokens: int, cpus: float) -> None:
        take_threads(cpus)
        self.model, self.processor, self.plan = model.load()
        self.max_new_tokens = max_new_tokens

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Map {"questions": JSON of a batch} to {"rows": JSON of its answers}."""
        entries: list[dict[str, Any]] = json.loads(row["questions"])
        questions = [_question(entry) for entry in entries]
        rows = answer_questions(self.model, self.processor, questions, self.plan, self.max_new_tokens)
        return {"rows": json.dumps(rows)}


def answer_file(
    model: Model,
    questions: Sequence[Question],
    output: Output,
    replicas: Replicas,
    *,
    max_new_tokens: int = 128,
    batch_size: int = 8,
    progress: Callable[[int], object] = lambda count: None,
) -> None:
    """Answer the missing questions; answers are written as replicas complete them.

    Call it inside `cluster.connected`.

    Args:
        model: As every replica loads it.
        questions: All of them. Their images must be there on every machine.
        output: Takes the answers, batch by batch.
        replicas: Replicas that answer.
        max_new_tokens: Maximum number of tokens of an answer.
        batch_size: Questions that a replica answers at once.
        progress: Called with the number of questions that were answered.

    Raises:
        FoveateError: replicas failed, or answers could not be written; the output keeps the answers written so far.
    """
    import ray.data
    from ray.exceptions import RayError

    remaining = [question for question in questions if question.number not in output.done]
    if not remaining:
        return
    blocks = [
        {"questions": json.dumps([_plain(question) for question in batch])} for batch in batches(remaining, batch_size)
    ]
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised once
    with warnings.catch_warnings():
        # Without a limit a question that kills replicas would be tried for ever; Ray 2.64 must have another way to it.
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated", DeprecationWarning)
        answered = ray.data.from_items(blocks, override_num_blocks=len(blocks)).map(
            BatchWorker,  # ty: ignore[invalid-argument-type]  # a class is called once a replica
            fn_constructor_args=(model.anywhere, max_new_tokens, replicas.cpus),
            compute=ray.data.ActorPoolStrategy(size=min(replicas.count, len(blocks))),
            num_cpus=replicas.cpus,
            num_gpus=replicas.gpus,
            max_task_retries=TRIES,
        )
    try:
        # Nothing is fetched ahead: a block that waits for the next one would not be on the disk.
        for block in answered.iter_batches(batch_size=None, prefetch_batches=0):
            for text in block["rows"]:
                # A batch may have been done twice where a replica died with its answers on the way.
                rows = [row for row in json.loads(str(text)) if row["number"] not in output.done]
                output.add(rows)
                progress(len(rows))
    except RayError as error:
        raise FoveateError(f"{sentence(error)} The answers are kept; continue with --resume.") from error
    if missing := [question.number for question in questions if question.number not in output.done]:
        raise FoveateError(f"replicas left {len(missing)} questions unanswered; continue with --resume.")


def _plain(question: Question) -> dict[str, Any]:
    video = None if question.video is None else str(question.video.absolute())
    return {**asdict(question), "images": [str(path.absolute()) for path in question.images], "video": video}


def _question(entry: dict[str, Any]) -> Question:
    video = None if entry["video"] is None else Path(entry["video"])
    fields: dict[str, Any] = entry | {"images": tuple(map(Path, entry["images"])), "video": video}
    return Question(**fields)
