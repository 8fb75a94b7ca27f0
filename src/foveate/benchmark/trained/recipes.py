"""The recipe of a training: one of the package, with the options, weights and steps of the benchmark."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from foveate import shipped
from foveate.benchmark.trained.settings import TrainedSettings
from foveate.benchmark.trained.systems import Training
from foveate.core.errors import FoveateError
from foveate.models.connectors import connector_named
from foveate.training.recipe import Lengths, Recipe
from foveate.training.recipe_file import read_recipe

#: Learning rate of an encoder that is trained from random weights.
ENCODER_RATE = 1e-3


def recipe_of(training: Training, settings: TrainedSettings, output: Path) -> Recipe:
    """Return the recipe of a training: the last stage of its recipe in the package, on trained weights.

    Args:
        training: What is trained.
        settings: Of the table.
        output: Folder of the run.

    Raises:
        FoveateError: The package has no such recipe, or it trains no new model.
    """
    recipe = read_recipe(shipped.recipe(f"{shipped.RECIPE}{training.recipe}"))
    new, stage = recipe.model.new, recipe.stages[-1]
    if new is None:
        raise FoveateError(f"the recipe {training.recipe} has no new model, whose connector could be exchanged.")
    vision = dict(settings.vision or new.vision)
    if training.image_size is not None:
        vision["image_size"] = training.image_size
    base = settings.base or None
    connector = {**new.connector, **training.options}
    tower, train = base, {part: rate for part, rate in stage.train.items() if part != "vision_tower"}
    if training.encoder:
        rate = stage.train["vision_tower"] if training.from_base else ENCODER_RATE
        vision, train = dict(training.encoder), {"vision_tower": rate, **train}
        tower = base if training.from_base else None
    if training.teacher:
        tower = str(model_folder(output.parent, training.teacher))
    new = replace(new, vision=vision, connector=connector, vision_tower=tower, language_model=base)
    stage = replace(
        stage,
        train=train,
        steps=settings.steps or stage.steps,
        batch_size=settings.train_batch_size or stage.batch_size,
        lengths=None if new.architecture == "llava-video" else _lengths(training, connector["type"]),
        loss=replace(stage.loss, recalibration=training.recalibration),
        teacher=tower if training.recalibration else None,
    )
    return replace(
        recipe,
        model=replace(recipe.model, new=new),
        stages=[stage],
        output=str(output),
        seed=recipe.seed if settings.seed is None else settings.seed,
    )


def run_folder(runs: Path, name: str) -> Path:
    """The folder of a training in the folder of all runs."""
    return runs / f"{name}.run"


def model_folder(runs: Path, name: str) -> Path:
    """The folder of the trained model."""
    return run_folder(runs, name) / "model"


def _lengths(training: Training, connector: str) -> Lengths | None:
    """How batches are trained: at one that is drawn, also where a paper averages all at several times the cost."""
    if training.plan:
        return "sampled"
    return "full" if connector_named(connector).nested else None


def without_weights_of_others(recipe: Recipe) -> Recipe:
    """The recipe with random weights everywhere, for measuring cost, which does not depend on them."""
    assert recipe.model.new is not None
    new = replace(recipe.model.new, vision_tower=None, language_model=None)
    return replace(recipe, model=replace(recipe.model, new=new))
