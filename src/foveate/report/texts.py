"""Texts of the report that explain the protocol."""

from typing import NamedTuple


class Passage(NamedTuple):
    """A paragraph about the protocol.

    Attributes:
        title: above it.
        about: kinds of files that it is about.
        words: the paragraph.
    """

    title: str
    about: tuple[str, ...]
    words: str


PROTOCOL: tuple[Passage, ...] = (
    Passage(
        "Questions",
        ("accuracy", "joint"),
        "Every plan is asked the same questions about the same images: pages drawn by the project's generator from its "
        "held-out split, public test sets, and files of your own. Decoding is greedy. An answer is right "
        "when it equals the expected one after normalisation; nothing is judged by another model.",
    ),
    Passage(
        "Intervals",
        ("accuracy", "joint"),
        "Accuracies are given with 95 % intervals. Accuracy relative to the full model has a paired bootstrap "
        "interval: both models are drawn with the same questions. Among many plans the best one is "
        "partly lucky; where intervals overlap, take the plan that is cheaper or simpler.",
    ),
    Passage(
        "Agreement with the full model, and difficult questions",
        ("accuracy",),
        "Agreement is the share of answers that equal those of the full model, right or wrong. Difficult are "
        "those questions that the full model answers and that it no longer answers when it is shown an image "
        "scaled down to the same number of tokens: on them token selection matters most.",
    ),
    Passage(
        "Controls",
        ("accuracy", "speed", "joint"),
        "Controls are the full model, tokens drawn at random, and the image scaled down to as many "
        "tokens. A method has to be better than random tokens and than the smaller image to be useful.",
    ),
    Passage(
        "Time",
        ("speed",),
        "All plans of a model run in turns within one process, each turn in another order, after a warm-up; shown is "
        "the median of the turns. The time to the first token is that of the encoder, of choosing and of the prefill. "
        "Efficiency is the speed-up of a plan over the speed-up of as many random tokens: 1 is the limit for methods "
        "that choose tokens after the encoder, and only those that shorten the encoder too can be above it. In plots, "
        "the time of a plan is that of the full model divided by the plan's speed-up, so that other work of the "
        "machine between one group of plans and the next moves no mark.",
    ),
    Passage(
        "Memory and operations",
        ("speed",),
        "Peak memory is what a run needs beyond what is there before it. The cache holds keys and values after the "
        "prefill. Operations are counted while the model runs, a multiplication and an addition as two.",
    ),
    Passage(
        "Fewer tokens and fewer bits",
        ("joint",),
        "Weights and cache are quantised in the same model that follows the plan, and the product is measured, not "
        "computed from the parts.",
    ),
)

FRONT = (
    "The line is the Pareto front: no other plan of the model takes as little and is more right. Only its plans have "
    "names; a vertical bar is the 95 % interval of such a plan. The dashed line is the full model."
)
NO_TIMES = "No model has both accuracy and time of the same plans, so accuracy is not drawn against time."
KEPT = (
    "Kept tokens show the image unchanged; pale ones were dropped; tinted areas were merged into one token each; "
    "tokens that leave inside the language model fade."
)
