"""Which tokens stay of every image of a batch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from foveate.core.attention import Attention
from foveate.core.errors import FoveateError
from foveate.core.plan import Plan
from foveate.core.pre_llm import PreLLMMethod
from foveate.core.sequence import PlacedSelection
from foveate.core.tokens import EncoderSpec, Need, Selection, VisualTokens
from foveate.families import Family
from foveate.runtime.encoding import Encoded
from foveate.runtime.first_layer_attention import queries_and_keys
from foveate.runtime.report import ImageReport, StepReport
from foveate.runtime.sight import Sight
from foveate.runtime.words import Words

MODALITIES = ("image", "video")

#: Needs that are one number a token, which a report keeps.
SCORES = ("cls_attention", "cls_logits", "received", "hub_attention", "first_layer_attention")


@dataclass
class ForwardContext:
    """One forward pass of the core, in one thread."""

    arguments: Mapping[str, Any]
    positions: Tensor | None = None  # what the language model was given
    encoded: dict[str, Encoded] = field(default_factory=dict)
    length: int = 0  # of the sequence that the language model was called with
    asking: Tensor | None = None  # (B, L) 1 for the tokens before answers, where labels tell
    answers: Tensor | None = None  # (B, L) bool, what is learned as answers, where labels tell
    words: Tensor | list[str] | None = None  # the questions, where the caller gave them: (B, L) bool, or texts
    #: By row and sample: the places of the question, and how they were found.
    questions: dict[tuple[int, int], tuple[Tensor, str]] = field(default_factory=dict)
    sight: Sight | None = None  # who may see whom among the new columns


@dataclass
class TokenSelector:
    """Runs the methods of a plan on the images of a batch."""

    family: Family
    core: Any
    plan: Plan
    tower: EncoderSpec
    needs: tuple[Need, ...]
    notes: tuple[str, ...]
    text_features: Tensor | None
    words: Words

    def choose(self, frame: ForwardContext, embeds: Tensor) -> tuple[list[PlacedSelection], list[ImageReport]]:
        """Selections of all images whose tokens are in this pass, and a report on each image.

        Args:
            frame: The pass.
            embeds: (B, L, D), what the language model would read.

        Raises:
            FoveateError: the prompts and the images do not fit each other.
        """
        chosen: list[PlacedSelection] = []
        reports: list[ImageReport] = []
        for modality, encoded in frame.encoded.items():
            places = self._placeholders(frame, modality)
            if places is None or not encoded.layouts:
                continue
            ids = frame.arguments.get("input_ids")
            if not encoded.goes_on(ids):
                encoded.prompt, encoded.chosen, encoded.inside = ids, [], {}
            for number, rows in enumerate(rows_of_images(places, [layout.count for layout in encoded.layouts])):
                row, columns = rows[0]
                if number == len(encoded.chosen):
                    encoded.chosen.append(self._select(frame, modality, encoded, row, columns, embeds))
                selection, report = encoded.chosen[number]
                chosen += [PlacedSelection(r, c, selection) for r, c in rows]
                reports.append(report)
        return chosen, reports

    def _placeholders(self, frame: ForwardContext, modality: str) -> Tensor | None:
        """Where the tokens of a modality stand (B, L), None where there are none."""
        token = self.family.placeholder(self.core, modality)
        if token is None:
            return None
        ids: Tensor | None = frame.arguments.get("input_ids")
        if ids is not None:
            return ids == token
        embeds: Tensor = frame.arguments["inputs_embeds"]
        own = self.core.get_input_embeddings()(torch.tensor(token, device=embeds.device))
        return (embeds == own).all(dim=-1)

    def _select(
        self,
        frame: ForwardContext,
        modality: str,
        encoded: Encoded,
        row: int,
        columns: Tensor,
        embeds: Tensor,
    ) -> tuple[Selection, ImageReport]:
        number = len(encoded.chosen)
        layout = encoded.layouts[number]
        measured = dict(encoded.measured[number])
        notes = dict.fromkeys(self.notes)
        for need in self.needs:
            if need.kind == "instruction":
                places, note = self._question(frame, row, columns, embeds.shape[1])
                measured[need] = embeds[row, places].detach()
                notes |= {note: None} if note else {}
            elif need.kind == "first_layer_attention":
                measured[need], note = self._first_layer(frame, row, columns, embeds)
                notes |= {note: None} if note else {}
            elif need.kind == "text_feature" and self.text_features is not None:
                measured[need] = self._text_feature(self.text_features, row, len(embeds))
        tokens = VisualTokens(
            embeds[row, columns].detach(),
            layout.crops,
            {need: value.to(embeds.device) for need, value in measured.items()},
            layout.separators,
            layout.size,
            self._before(frame, encoded, modality, row, columns),
            self.tower,
        )
        whole = Selection(torch.arange(len(tokens), device=embeds.device))
        steps = []
        steps_before = self.plan.early_steps
        for step in steps_before:
            if encoded.merged is not None and step is steps_before[0]:
                # The tower gave every patch the feature of the row it went into: one of each row is enough.
                found = encoded.merged[number]
                merges = found.assignment is not None
                features = None
                if found.weights is not None:  # the model interpolated: the tokens of a row are not equal
                    if getattr(step.method, "virtual", False):
                        raise FoveateError(
                            f"{step.method.name} attends as if nothing had been merged, which needs equal tokens; this "
                            "model interpolates those of large images. Give it virtual=False, or smaller images."
                        )
                    features = found.apply(tokens.features)
                elif merges:
                    features = tokens.features[found.indices]
                whole = Selection(found.indices, features, found.assignment, found.weights)
                steps.append(StepReport(str(step), step.method.site, len(tokens), len(whole), 0.0))
                tokens = tokens.take(whole)
                continue
            assert isinstance(step.method, PreLLMMethod)
            start = time.perf_counter()
            with torch.no_grad():
                own = step.method(tokens, step.count(len(tokens)))
            spent = 1000 * (time.perf_counter() - start)
            steps.append(StepReport(str(step), step.method.site, len(tokens), len(own), spent))
            whole = whole.then(own, layout.count)
            if step is not steps_before[-1]:
                tokens = tokens.take(own)
        scores = {need: value for need, value in measured.items() if need.kind in SCORES}
        return whole, ImageReport(number, modality, row, layout, whole, tuple(steps), tuple(notes), measured=scores)

    def _before(self, frame: ForwardContext, encoded: Encoded, modality: str, row: int, columns: Tensor) -> int:
        """How many images of a prompt stand before one: the same alone, in a batch and among other samples."""
        earlier = [report for _, report in encoded.chosen if report.row == row]
        company = None if frame.sight is None else frame.sight.company(row, columns)
        if company is None or not earlier:
            return len(earlier)
        places = self._placeholders(frame, modality)
        if places is None:
            return len(earlier)
        own, first, found = places[row].nonzero().flatten(), 0, 0
        for report in earlier:
            found += bool(company[own[first : first + report.layout.count]].any())
            first += report.layout.count
        return found

    @staticmethod
    def _text_feature(features: Tensor, row: int, rows: int) -> Tensor:
        """(d,) that of the prompt in a row; beams and several answers repeat prompts."""
        if features.ndim == 1:
            return features
        if rows % len(features):
            raise FoveateError(f"text_features are of {len(features)} prompts, and this batch has {rows}.")
        return features[row * len(features) // rows]

    def _question(self, frame: ForwardContext, row: int, columns: Tensor, length: int) -> tuple[Tensor, str]:
        """(T,) the places of the user's own words, and how they were found where that is not exact, else ""."""
        # What is packed into a row beside the image's own sample is as if it were not there.
        company = None if frame.sight is None else frame.sight.company(row, columns)
        key = row, -1 if company is None else int(columns[0])
        if key in frame.questions:
            return frame.questions[key]
        ids: Tensor | None = frame.arguments.get("input_ids")
        given = frame.words
        if company is None:
            sample = torch.arange(length, device=columns.device)
        else:
            sample = company.to(columns.device).nonzero().flatten()
        if torch.is_tensor(given):
            rows = len(frame.arguments["inputs_embeds"] if ids is None else ids)
            if given.shape[1] != length or rows % len(given):
                raise FoveateError(
                    f"the mask of the question is {tuple(given.shape)}, and the prompts are {rows} of {length} tokens."
                )
            own = given[row * len(given) // rows].to(columns.device)
            found = sample[own[sample].nonzero().flatten()], ""
        elif ids is None:
            text = self._text(frame, row, columns, length)
            note = "the prompt came without ids: all text after the image is taken for the question"
            return _after(text, columns).nonzero().flatten(), note  # of each image its own
        elif given is not None:
            if len(ids) % len(given):
                raise FoveateError(f"{len(given)} questions were given for {len(ids)} prompts.")
            places = self.words.find_text(ids[row, sample].tolist(), given[row * len(given) // len(ids)])
            found = sample[torch.tensor(places, dtype=torch.int64, device=columns.device)], ""
        else:
            answers = None if frame.answers is None else frame.answers[row].to(columns.device)[sample].tolist()
            text = self._text(frame, row, columns, length)[sample]
            places, note = self.words.find(ids[row, sample].tolist(), text.tolist(), answers)
            found = sample[torch.tensor(places, dtype=torch.int64, device=columns.device)], note
        frame.questions[key] = found
        return found

    def _text(self, frame: ForwardContext, row: int, columns: Tensor, length: int) -> Tensor:
        """(L,) bool, what is no padding and no part of an image: what stands within one, between frames, is.

        Of the sample that an image at `columns` is of.
        """
        text: Tensor | None = None
        for modality in MODALITIES:
            places = self._placeholders(frame, modality)
            if places is None:
                continue
            text = torch.ones_like(places[row]) if text is None else text
            text &= ~places[row]
            encoded = frame.encoded.get(modality)
            if encoded is not None and encoded.layouts:
                for rows in rows_of_images(places, [layout.count for layout in encoded.layouts]):
                    for own, image in rows:
                        if own == row and len(image):
                            text[image[0] : image[-1] + 1] = False
        if text is None:
            raise FoveateError(f"{self.plan} looks for a question beside images, and the prompt has none.")
        if frame.sight is not None:
            text &= frame.sight.seen[row, -length:].to(text.device) > 0
            company = frame.sight.company(row, columns)
            text = text if company is None else text & company.to(text.device)
        return text

    def _first_layer(self, frame: ForwardContext, row: int, columns: Tensor, embeds: Tensor) -> tuple[Tensor, str]:
        """Attention that the question pays to an image's tokens in the first decoder layer, (N,), and a note.

        Words before the image cannot see it; where no word of the question comes after it, all text there is asked.
        """
        positions = frame.positions
        if positions is not None and positions.shape[-2] > 1:
            positions = positions[..., row : row + 1, :]
        found = queries_and_keys(self.family.text(self.core), embeds[row : row + 1].detach(), positions)
        query, key, scaling = found
        words, note = self._question(frame, row, columns, embeds.shape[1])
        rows = words[words > columns[-1]]
        if not len(rows):
            rows = _after(self._text(frame, row, columns, embeds.shape[1]), columns).nonzero().flatten()
            note = "the question stands before the image, which it cannot look at: all text after the image is asked"
        if not len(rows):
            raise FoveateError(f"{self.plan} asks what text looks at in an image, and the prompt has no text.")
        attention, sight = Attention(query[0], key[0], scaling), frame.sight
        if sight is not None and sight.blocks is None and sight.allowed is not None:
            attention = replace(attention, allowed=sight.allowed[row][:, -embeds.shape[1] :])
        elif sight is not None:
            seen = sight.seen[row, -embeds.shape[1] :].to(embeds.device) > 0
            if sight.blocks is not None:
                seen = seen & sight.blocks[row].eq(sight.blocks[row, columns[0]])
            attention = replace(attention, key_mask=seen)
        return attention.attention_received(rows, columns), note


def _after(text: Tensor, columns: Tensor) -> Tensor:
    """(L,) bool, of text what stands after an image; all of it where none does."""
    after = text.clone()
    after[: int(columns[-1]) + 1] = False
    return after if bool(after.any()) else text


def rows_of_images(places: Tensor, counts: list[int]) -> list[list[tuple[int, Tensor]]]:
    """For every image the sequences that hold it, with its columns.

    A row holds whole images, in order. Where `generate` repeats prompts for beams or several answers, each image is
    in as many neighbouring rows.

    Args:
        places: (B, L) bool, where image tokens stand.
        counts: Tokens of every encoded image, in order.

    Raises:
        FoveateError: the placeholders are not those of these images.
    """
    per_row = places.sum(dim=1).tolist()
    total, encoded = sum(per_row), sum(counts)
    if not encoded or total % encoded:
        raise FoveateError(
            f"the prompts have {total} placeholders for {encoded} visual tokens: images must be encoded with the "
            "prompt they belong to, all of it at once (no prefill_chunk_size)."
        )
    copies = total // encoded
    found: list[list[tuple[int, Tensor]]] = [[] for _ in counts]
    rows = [row for row, count in enumerate(per_row) if count]
    image = 0
    for first in range(0, len(rows), copies):
        group = rows[first : first + copies]
        columns = [places[row].nonzero().flatten() for row in group]
        start = 0
        while start < len(columns[0]) and image < len(counts):
            stop = start + counts[image]
            for row, own in zip(group, columns, strict=True):
                found[image].append((row, own[start:stop]))
            start, image = stop, image + 1
        if start != len(columns[0]):
            raise FoveateError("the placeholders of each prompt must be those of whole images, in order.")
    return found
