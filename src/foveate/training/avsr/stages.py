"""The three stages; each can be interrupted at any step and continues from its last state."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, WhisperModel

from foveate.core.files import atomic_write
from foveate.models.avsr import LipEncoder
from foveate.synthetic.spoken_words import PHONEMES, VISEME_NAMES, utterance
from foveate.training.avsr.data import WORDS_PER_UTTERANCE, Features, make_batch
from foveate.training.avsr.recipe import AVSRRecipe
from foveate.training.avsr.tasks import Parts, PoolTask, Task
from foveate.training.avsr.text import text_batch, transcripts
from foveate.training.callbacks import StopRequest
from foveate.training.next_scale import rate
from foveate.training.run_directory import OnProgress, RunDirectory

#: Steps after which the state is written, and after which a line of the log is.
_SAVE_EVERY, _LOG_EVERY = 25, 20
#: From the number of a step to its loss and what else the log shows.
Step = Callable[[int], tuple[Tensor, dict[str, float]]]


def _run(
    stage: str,
    modules: nn.Module,
    step_loss: Step,
    steps: int,
    recipe: AVSRRecipe,
    folder: RunDirectory,
    on_progress: OnProgress,
    stop: StopRequest,
) -> bool:
    """Train the parameters of `modules` that require gradients; returns whether all steps are done."""
    trained = {name: value for name, value in modules.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), betas=(0.9, 0.98), weight_decay=0.01)
    done = 0
    if (state := folder.load_state(("done", "parameters", "optimizer"))) is not None:
        done = state["done"]
        with torch.no_grad():
            for name, value in trained.items():
                value.copy_(state["parameters"][name])
        optimizer.load_state_dict(state["optimizer"])
    earlier, start = folder.log.rewind(done), time.perf_counter()
    modules.train()
    while done < steps and not stop.requested:
        for group in optimizer.param_groups:
            group["lr"] = rate(recipe.learning_rate, done, steps)
        optimizer.zero_grad(set_to_none=True)
        loss, shown = step_loss(done)
        loss.backward()
        nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        done += 1
        last = done == steps
        if done % _LOG_EVERY == 0 or last:
            seconds = round(earlier + time.perf_counter() - start, 3)
            entry = {"step": done, "stage": stage, "loss": float(loss.detach()), **shown, "seconds": seconds}
            folder.log.append(entry)
        on_progress(stage, done, steps, float(loss.detach()))
        if done % _SAVE_EVERY == 0 or last or stop.requested:
            parameters = {name: value.detach() for name, value in trained.items()}
            folder.save_state({"done": done, "parameters": parameters, "optimizer": optimizer.state_dict()})
    modules.eval()
    return done == steps


def _about(**settings: Any) -> dict[str, Any]:
    """Identity of a run, as its file has it: lists in place of tuples."""
    return json.loads(json.dumps({name: asdict(value) for name, value in settings.items()}))


def _seeded(seed: int, build: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return build()


def train_encoders(
    recipe: AVSRRecipe, output: Path, on_progress: OnProgress, stop: StopRequest
) -> tuple[WhisperModel, LipEncoder] | None:
    """Train both encoders to name the phoneme or viseme of every frame; the heads for that are dropped.

    Args:
        recipe: Settings.
        output: Folder that gets the folders `audio` and `video`, and the state of the run.
        on_progress: See `OnProgress`.
        stop: Checked after every step.

    Returns:
        The models; None if the run was stopped.

    Raises:
        FoveateError: the folder holds encoders of another recipe.
    """
    folder = RunDirectory(output, _about(recipe=recipe))
    if (output / "video" / "config.json").is_file():
        return WhisperModel.from_pretrained(output / "audio").eval(), LipEncoder.from_pretrained(
            output / "video"
        ).eval()

    def build() -> nn.ModuleDict:
        return nn.ModuleDict(
            {
                "audio": WhisperModel(recipe.whisper()),
                "video": LipEncoder(recipe.lips()),
                "phonemes": nn.Linear(recipe.width, len(PHONEMES)),
                "visemes": nn.Linear(recipe.width, len(VISEME_NAMES)),
            }
        )

    modules: Any = _seeded(recipe.seed, build)
    modules["audio"].decoder.requires_grad_(False)

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        size = recipe.encoder_batch_size
        numbers = range(step * size, (step + 1) * size)
        snrs = recipe.snrs
        batch = make_batch(
            [utterance(n, snr=snrs[n % len(snrs)], noise=recipe.noise, words=WORDS_PER_UTTERANCE) for n in numbers]
        )
        sound = modules["phonemes"](modules["audio"].encoder(batch.input_features).last_hidden_state)
        sight = modules["visemes"](modules["video"](batch.video_values).last_hidden_state)
        losses = [
            F.cross_entropy(x.flatten(0, 1), y.flatten()) for x, y in ((sound, batch.phonemes), (sight, batch.visemes))
        ]
        right = {
            "phoneme_accuracy": float((sound.argmax(-1) == batch.phonemes).float().mean()),
            "viseme_accuracy": float((sight.argmax(-1) == batch.visemes).float().mean()),
        }
        return losses[0] + losses[1], right

    if not _run("encoders", modules, step_loss, recipe.encoder_steps, recipe, folder, on_progress, stop):
        return None
    with atomic_write(output) as partial:
        modules["audio"].save_pretrained(partial / "audio")
        modules["video"].save_pretrained(partial / "video")
    return modules["audio"], modules["video"]


def train_language_model(
    recipe: AVSRRecipe, tokenizer: PreTrainedTokenizerFast, output: Path, on_progress: OnProgress, stop: StopRequest
) -> LlamaForCausalLM | None:
    """Train the language model on text: words, from their stretched spelling. Arguments as of `train_encoders`."""
    folder = RunDirectory(output, _about(recipe=recipe))
    if (output / "config.json").is_file():
        return LlamaForCausalLM.from_pretrained(output).eval()
    model: Any = _seeded(recipe.seed, lambda: LlamaForCausalLM(recipe.llama(len(tokenizer))))

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        chance = random.Random(f"text {recipe.seed} {step}")
        ids, mask, labels = text_batch(tokenizer, recipe.text_batch_size, chance)
        result = model(input_ids=ids, attention_mask=mask, labels=labels)
        asked = labels[:, 1:] != -100
        right = (result.logits[:, :-1].argmax(-1) == labels[:, 1:])[asked]
        return result.loss, {"token_accuracy": float(right.float().mean())}

    if not _run("language model", model, step_loss, recipe.text_steps, recipe, folder, on_progress, stop):
        return None
    _save(model, tokenizer, output)
    return model


def train_recognizer(
    recipe: AVSRRecipe,
    task: Task | PoolTask,
    parts: Parts,
    tokenizer: PreTrainedTokenizerFast,
    features: Features,
    output: Path,
    on_progress: OnProgress,
    stop: StopRequest,
    start: Any = None,
) -> Any:
    """Train what one system trains on features of the frozen encoders.

    Args:
        recipe: Settings.
        task: The system.
        parts: Trained encoders and language model.
        tokenizer: Of the language model.
        features: Of the training set.
        output: Folder of the model; the state of the run is next to it.
        on_progress: See `OnProgress`.
        stop: Checked after every step.
        start: The trained model of `task.start`, if it names one.

    Returns:
        The model; None if the run was stopped.

    Raises:
        FoveateError: the folder holds a model of another recipe or system.
    """
    folder = RunDirectory(output, _about(recipe=recipe, task=task))
    if (output / "config.json").is_file():
        return task.load(output).eval()
    model = _seeded(recipe.seed, lambda: task.build(recipe, parts, len(tokenizer), start))

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        chance = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        rows = torch.randint(len(features.texts), (recipe.batch_size,), generator=chance)
        text = transcripts(tokenizer, [features.texts[row] for row in rows.tolist()])
        # The noise of a step is the same after an interruption.
        return _seeded(chance.initial_seed(), lambda: task.loss(model, text, features.inputs(rows, *task.reads)))

    if not _run(output.name, model, step_loss, recipe.steps, recipe, folder, on_progress, stop):
        return None
    _save(model, tokenizer, output)
    return model


def _save(model: Any, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Write a trained model in one step: its configuration says that it is finished."""
    with atomic_write(output) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
