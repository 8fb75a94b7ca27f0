"""What papers claim about their connectors and encoders, compared with the rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foveate.statistics import Compared, paired_bootstrap

SHOWN, REVERSED, NOT_SHOWN, NO_ROW = "shown", "reversed", "not shown", "no row yet"


@dataclass(frozen=True)
class Claim:
    """A claim that one system is better than another one at equal numbers of tokens, or as good.

    Args:
        system: Name of the system.
        paper: Where the claim is from.
        claim: In words.
        against: Name of the system that it is compared with.
        margin: Least difference of accuracy; negative for a claim to be as good.
        most: Greatest number of tokens at which it is claimed; None: any.
        least: Least number of tokens at which it is claimed.
        reverse: Whether the difference is that of `against` over `system`.
    """

    system: str
    paper: str
    claim: str
    against: str
    margin: float = 0.0
    most: int | None = None
    least: int = 0
    reverse: bool = False

    def judge(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Compare the rows of both systems at the numbers of tokens that both have.

        `verdict` is "shown" where the whole 95 % interval of the difference lies above the margin, "reversed" where it
        lies below, "not shown" where it reaches over the margin, and "no row yet" where nothing can be compared.
        """
        ours, theirs = (
            {row["tokens"]: row for row in rows if row["system"] == system} for system in (self.system, self.against)
        )
        lengths = sorted(
            tokens
            for tokens in ours.keys() & theirs.keys()
            if tokens >= self.least and (self.most is None or tokens <= self.most)
        )
        said = {
            "system": self.system, "paper": self.paper, "claim": self.claim, "against": self.against, "tokens": lengths,
        }  # fmt: skip
        if not lengths:
            return {**said, "verdict": NO_ROW, "difference": None, "low": None, "high": None}
        pairs = [(theirs[n], ours[n]) if self.reverse else (ours[n], theirs[n]) for n in lengths]
        compared = compare(pairs)
        low, high = compared.difference_low, compared.difference_high
        verdict = SHOWN if low > self.margin else REVERSED if high < self.margin else NOT_SHOWN
        values = {"difference": compared.difference, "low": low, "high": high}
        return {**said, "verdict": verdict, **{name: round(value, 4) for name, value in values.items()}}


def compare(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> Compared:
    """Compare pairs of rows on the same questions; the answers to one question at several lengths stay together."""
    firsts, seconds, strata, clusters = [], [], [], []
    for first, second in pairs:
        for task, answers in first["rights"].items():
            firsts += map(int, answers)
            seconds += map(int, second["rights"][task])
            strata += [task] * len(answers)
            clusters += range(len(answers))
    return paired_bootstrap(firsts, seconds, strata=strata, clusters=clusters)


#: Claims that a row can show. A claim of a system without rows is listed as such.
CLAIMS = (
    Claim("tokenpacker", "arXiv 2407.02392", "above average pooling at equal tokens", "average"),
    Claim("tokenpacker", "arXiv 2407.02392", "above pixel unshuffle at equal tokens", "pixel_unshuffle"),
    Claim(
        "m3", "arXiv 2405.17430", "one nested training within a point of separate ones, or better", "m3-separate",
        margin=-0.01,
    ),
    Claim("mqt", "arXiv 2405.19315", "within a point of average pooling at equal tokens, or better", "average", -0.01),
    Claim("tokenflex", "arXiv 2504.03154", "within a point of pixel unshuffle at equal tokens, or better",
          "pixel_unshuffle", -0.01),
    Claim("fourier", "arXiv 2508.06038", "above average pooling at equal tokens", "average"),
    Claim("oryx", "arXiv 2409.12961", "above average pooling at equal tokens", "average"),
    Claim("quecc", "arXiv 2411.03312", "above TokenPacker below 16 tokens", "tokenpacker", most=15),
    Claim("quecc", "arXiv 2411.03312", "not above TokenPacker from 16 tokens on", "tokenpacker", least=16, margin=-0.01,
          reverse=True),
    Claim("llava_mini", "arXiv 2501.03895", "one token with pre-fusion above one without", "llava_mini-no-prefusion"),
    Claim("convllava", "arXiv 2405.15738", "within a point of a pooled ViT at equal tokens", "vit", -0.01),
    Claim("lookupvit", "arXiv 2407.12753", "within a point of a pooled ViT at equal tokens", "vit", -0.01),
    Claim("lookupvit-nested", "arXiv 2407.12753", "one training of several lengths within a point of one of each",
          "lookupvit", -0.01),
    Claim("stvit", "arXiv 2211.11167", "within a point of a pooled ViT at equal tokens", "vit", -0.01),
    Claim("falcon", "arXiv 2501.16297", "registers above pooled patches at equal tokens", "vit"),
    Claim("sit-no-distillation", "arXiv 2111.12624", "slimmed within a point of a pooled ViT at equal tokens",
          "vit", -0.01),
    Claim("sit", "arXiv 2111.12624", "distillation of recalibrated features above none", "sit-no-distillation"),
    Claim("sit", "arXiv 2111.12624", "distillation of recalibrated features above none, both from the weights of the "
          "teacher", "sit-from-teacher"),
    Claim("patch-16", "arXiv 2502.03738", "patches of 16 pixels above those of 32 at equal parameters and tokens",
          "patch-32"),
    Claim("patch-8", "arXiv 2502.03738", "patches of 8 pixels above those of 16 at equal parameters and tokens",
          "patch-16"),
)  # fmt: skip


#: The same for video connectors.
CLIP_CLAIMS = tuple(
    Claim(system, paper, "above average pooling at equal tokens", "average")
    for system, paper in (
        ("slow_fast", "arXiv 2504.01328"),
        ("crosslmm", "arXiv 2505.17020"),
        ("vqtoken", "arXiv 2503.16980"),
        ("b_vllm", "arXiv 2412.09919"),
        ("hicom", "arXiv 2503.16036"),
        ("langdc", "arXiv 2509.00969"),
        ("temporal_pvc", "arXiv 2412.09613"),
    )
)


def judged(rows: Sequence[dict[str, Any]], claims: Sequence[Claim] = CLAIMS) -> list[dict[str, Any]]:
    """Compare every claim with the rows of a table."""
    return [claim.judge(rows) for claim in claims]
