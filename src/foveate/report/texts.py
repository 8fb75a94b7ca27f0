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
        "Every plan answers the same questions about the same images: pages from the held-out split of the project's "
        "generator, public test sets, and files of your own. Decoding is greedy. An answer is right "
        "when it equals the expected one after normalisation; no model acts as judge.",
    ),
    Passage(
        "Questions of public tasks",
        ("released",),
        "lmms-eval asks the questions with its own prompts and scores the answers; every plan answers the same ones. "
        "Accuracy is the mean score of a question, from 0 to 1: the first metric of the task that has a number for the "
        "question. For MME it is the share of right answers, not the sum of points.",
    ),
    Passage(
        "Intervals",
        ("accuracy", "joint", "released"),
        "Accuracies are given with 95 % intervals. Accuracy relative to the full model has a paired bootstrap "
        "interval: both models are resampled with the same questions. Among many plans the best one is "
        "partly lucky; if intervals overlap, prefer the cheaper or simpler plan.",
    ),
    Passage(
        "Agreement with the full model, and difficult questions",
        ("accuracy",),
        "Agreement is the share of answers that equal those of the full model, right or wrong. Difficult "
        "questions are those that the full model answers right with the original image, and wrong with an image scaled "
        "down to the same number of tokens: on them token selection matters most.",
    ),
    Passage(
        "Controls",
        ("accuracy", "speed", "joint", "released"),
        "Controls are the full model, tokens drawn at random, and the image scaled down to as many "
        "tokens. A method has to be better than random tokens and than the smaller image to be useful.",
    ),
    Passage(
        "Time",
        ("speed",),
        "All plans of a model run in turns within one process, in a different order each turn, after a warm-up; the "
        "median is shown. Time to first token is that of the encoder, the token selection and the prefill. "
        "Efficiency is the speed-up of a plan over the speed-up of as many random tokens: 1 is the limit for methods "
        "that select tokens after the encoder; only those that shorten the encoder too can exceed it. In plots, "
        "the time of a plan is that of the full model divided by the plan's speed-up, so that other load of "
        "the machine between two groups of plans moves no marker.",
    ),
    Passage(
        "Memory and operations",
        ("speed",),
        "Peak memory is the maximum of a run beyond the memory in use before it. The cache holds keys and "
        "values after the "
        "prefill. FLOPs are counted while the model runs; a multiply-accumulate counts as two.",
    ),
    Passage(
        "Fewer tokens and fewer bits",
        ("joint",),
        "Weights and cache are quantised in the model with the plan, and the combination is measured, not computed "
        "from its parts.",
    ),
)

FRONT = (
    "The line is the Pareto front: no other plan of the model is both cheaper and more accurate. Only its plans are "
    "labelled; a vertical bar is the 95 % interval of such a plan. The dashed line is the full model."
)
NO_TIMES = "No model has both accuracy and time of the same plans, so there is no plot of accuracy against time."
KEPT = (
    "Kept tokens show the image unchanged; pale ones were dropped; tinted areas were merged into one token each; "
    "tokens dropped inside the language model fade."
)
