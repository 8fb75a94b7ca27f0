"""What the task needs that YAML cannot say: how a line of the data becomes pictures, and which answers are right."""

from PIL import Image

from foveate.benchmark.matching import matches


def of(doc):
    """The pictures of a question."""
    return [Image.open(path).convert("RGB") for path in doc["images"]]


def right(doc, results):
    """Whether an answer counts, as `foveate bench accuracy` does."""
    return {"exact_match": float(matches(results[0], doc["answer"]))}
