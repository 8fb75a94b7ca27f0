"""Functions of the lmms-eval task: the images of a sample, and the score of an answer."""

from PIL import Image

from foveate.benchmark.matching import matches


def of(doc):
    """The images of a sample."""
    return [Image.open(path).convert("RGB") for path in doc["images"]]


def right(doc, results):
    """Score an answer as `foveate bench accuracy` does."""
    return {"exact_match": float(matches(results[0], doc["answer"]))}
