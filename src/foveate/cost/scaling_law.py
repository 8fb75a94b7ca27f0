"""Error of a model over the size of its language model and its number of visual tokens, as a power law.

    L(N, T) = A / (N^alpha T^beta) + D

The form of "Inference Optimal VLMs Need Only One Visual Token but Larger Models" (Li et al., arXiv 2411.03312). At a
fixed cost of inference, N (T + text), the best number of tokens follows from the two exponents.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.text_files import read_json, read_text

COLUMNS = ("parameters", "tokens", "error")
#: Shares of the lowest error that fits start from, for D.
STARTS = (0.02, 0.3, 0.6, 0.9)
#: Numbers that are fitted; there must be more rows.
UNKNOWNS = 4
#: Steps of the least squares, and the damping at which they end.
STEPS, CONVERGED = 300, 1e6
BILLION = 1e9


@dataclass(frozen=True)
class ScalingLaw:
    """A fitted law.

    Args:
        scale: A, for N in billions of parameters.
        alpha: Exponent of the parameters.
        beta: Exponent of the tokens.
        floor: D, the error that neither lowers.
    """

    scale: float
    alpha: float
    beta: float
    floor: float

    def error(self, parameters: float, tokens: float) -> float:
        """Predicted error of a language model with so many parameters and so many visual tokens."""
        return self.scale * (parameters / BILLION) ** -self.alpha * tokens**-self.beta + self.floor

    def best_tokens(self, text: int, most: int) -> int:
        """The number of tokens from 1 to `most` with the lowest error at a fixed cost N (T + text), the same for all.

        With alpha > beta > 0 it is next to beta text / (alpha - beta), where that is in the range.
        """
        return min(
            range(1, most + 1), key=lambda tokens: self.alpha * math.log(tokens + text) - self.beta * math.log(tokens)
        )


@dataclass(frozen=True)
class Fit:
    """A law and the intervals of its exponents.

    Args:
        law: The law.
        alpha: Ends of the interval of alpha.
        beta: Ends of the interval of beta.
        rmse: Root of the mean squared residual.
    """

    law: ScalingLaw
    alpha: tuple[float, float]
    beta: tuple[float, float]
    rmse: float


def read_rows(path: Path) -> list[tuple[float, float, float]]:
    """Read rows of `COLUMNS` from a CSV file, or from a JSON file with a list of objects.

    Raises:
        FoveateError: The file cannot be read, lacks a column, or has a value that is not positive.
    """
    if not path.is_file():
        raise FoveateError(f"there is no file {path}.")
    if path.suffix.lower() == ".json":
        try:
            records = read_json(path)
        except (OSError, ValueError) as error:
            raise FoveateError(f"{path} cannot be read as JSON: {error}.") from error
    else:
        try:
            records = list(csv.DictReader(io.StringIO(read_text(path))))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise FoveateError(f"{path} cannot be read as CSV: {error}.") from error
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise FoveateError(f"{path} must hold a list of objects with {', '.join(COLUMNS)}.")
    return [_row(record, f"row {number} of {path}") for number, record in enumerate(records, 1)]


def _row(record: dict[str, Any], name: str) -> tuple[float, float, float]:
    values = []
    for column in COLUMNS:
        if record.get(column) is None:
            raise FoveateError(f"{name} has no {column}; the columns are {', '.join(COLUMNS)}.")
        try:
            value = float(record[column])
        except (TypeError, ValueError):
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            raise FoveateError(f"{column} in {name} must be a positive number, not {record[column]!r}.")
        values.append(value)
    return values[0], values[1], values[2]


def fit(rows: Sequence[tuple[float, float, float]], resamples: int = 200, seed: int = 0) -> Fit:
    """Fit the law by least squares, with 95 % intervals from a bootstrap of residuals.

    The rows of such a study are a grid of chosen sizes, so that residuals are drawn again and not rows. Residuals are
    scaled by sqrt(n / (n - 4)), as the fit makes them too small.

    Args:
        rows: Parameters, tokens and error of every run.
        resamples: Number of bootstrap samples.
        seed: Of the bootstrap; the global random state is not changed.

    Raises:
        FoveateError: Rows are too few to determine the law.
    """
    sizes, tokens = {row[0] for row in rows}, {row[1] for row in rows}
    if len(rows) <= UNKNOWNS or len(sizes) < 2 or len(tokens) < 2:
        raise FoveateError(
            f"a fit needs at least {UNKNOWNS + 1} rows with several sizes and several numbers of tokens, and there are "
            f"{len(rows)} rows, {len(sizes)} sizes and {len(tokens)} numbers of tokens."
        )
    table = torch.tensor(rows, dtype=torch.float64)
    logs = torch.stack([(table[:, 0] / BILLION).log(), table[:, 1].log()], dim=1)
    centre, errors = logs.mean(0), table[:, 2]
    logs = logs - centre
    starts = torch.stack([_start(logs, errors, share) for share in STARTS])
    solutions, losses = _minimize(logs, errors.expand(len(starts), -1), starts, float(errors.min()))
    best = solutions[losses.argmin()]
    predicted, _ = _predict(logs, best[None], float(errors.min()))
    residuals = errors - predicted[0]
    generator = torch.Generator().manual_seed(seed)
    spread = (residuals - residuals.mean()) * math.sqrt(len(rows) / (len(rows) - UNKNOWNS))
    draws = torch.randint(len(rows), (resamples, len(rows)), generator=generator)
    samples = predicted + spread[draws]
    drawn, _ = _minimize(logs, samples, best.expand(resamples, -1), float(errors.min()))
    low, high = drawn[:, 1:3].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0).tolist()
    log_scale, alpha, beta, floor = _natural(best, errors)
    scale = math.exp(log_scale + alpha * float(centre[0]) + beta * float(centre[1]))
    law = ScalingLaw(scale, alpha, beta, floor)
    return Fit(law, (low[0], high[0]), (low[1], high[1]), float(residuals.square().mean().sqrt()))


def _start(logs: Tensor, errors: Tensor, share: float) -> Tensor:
    """Solution for a fixed D, a share of the lowest error, where logarithms make the law linear."""
    design = torch.cat([torch.ones_like(logs[:, :1]), -logs], dim=1)
    target = (errors - share * errors.min()).log()
    solution = torch.linalg.lstsq(design, target[:, None]).solution[:, 0]
    return torch.cat([solution, torch.logit(solution.new_tensor([share]))])


def _predict(logs: Tensor, solutions: Tensor, lowest: float) -> tuple[Tensor, Tensor]:
    """Errors `(S, n)` of S solutions and their derivatives `(S, n, 4)`.

    A solution is log A, alpha, beta, and the logit of D as a share of the lowest error of all rows.
    """
    log_scale, alpha, beta, logit = solutions.unsqueeze(-1).unbind(1)
    power = (log_scale - alpha * logs[:, 0] - beta * logs[:, 1]).exp()
    share = logit.sigmoid()
    slopes = [power, -logs[:, 0] * power, -logs[:, 1] * power, (lowest * share * (1 - share)).expand_as(power)]
    return power + lowest * share, torch.stack(slopes, dim=-1)


def _minimize(logs: Tensor, errors: Tensor, starts: Tensor, lowest: float) -> tuple[Tensor, Tensor]:
    """Least squares by Levenberg's and Marquardt's steps, of S problems at once.

    Args:
        logs: `(n, 2)`, logarithms of sizes and tokens.
        errors: `(S, n)`.
        starts: `(S, 4)`, see `_predict`.
        lowest: Largest possible D.

    Returns:
        Solutions `(S, 4)` and sums of squares `(S,)`.
    """
    solutions, damping = starts.clone(), starts.new_full((len(starts), 1, 1), 1e-2)
    predicted, slopes = _predict(logs, solutions, lowest)
    losses = (errors - predicted).square().sum(-1)
    for _ in range(STEPS):
        normal = slopes.mT @ slopes
        scaled = damping * normal.diagonal(dim1=1, dim2=2).clamp(min=1e-12).diag_embed()
        right = slopes.mT @ (errors - predicted).unsqueeze(-1)
        tried = solutions + torch.linalg.solve(normal + scaled, right)[..., 0]
        tried_predicted, tried_slopes = _predict(logs, tried, lowest)
        tried_losses = (errors - tried_predicted).square().sum(-1)
        better = tried_losses < losses
        solutions = torch.where(better[:, None], tried, solutions)
        predicted = torch.where(better[:, None], tried_predicted, predicted)
        slopes = torch.where(better[:, None, None], tried_slopes, slopes)
        losses = torch.where(better, tried_losses, losses)
        damping = torch.where(better[:, None, None], damping / 3, damping * 4).clamp(1e-12, CONVERGED)
        if bool((damping >= CONVERGED).all()):  # no step is small enough to be better
            break
    return solutions, losses


def _natural(solution: Tensor, errors: Tensor) -> tuple[float, float, float, float]:
    log_scale, alpha, beta, floor = solution.tolist()
    return log_scale, alpha, beta, float(errors.min()) / (1 + math.exp(-floor))
