"""Select the visual tokens of every image of a batch."""

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
from foveate.runtime.attention_masks import SequenceMasks
from foveate.runtime.encoding import EncodedImages
from foveate.runtime.first_layer_attention import queries_and_keys
from foveate.runtime.frame_times import written_times
from foveate.runtime.question_tokens import QuestionFinder
from foveate.runtime.report import ImageReport, StepReport

MODALITIES = ("image", "video")

#: Needs with one value per token, which a report keeps.
SCORES = ("cls_attention", "cls_logits", "received", "hub_attention", "first_layer_attention")


@dataclass
class ForwardContext:
    """Context of one forward pass of the core, in one thread."""

    arguments: Mapping[str, Any]
    positions: Tensor | None = None  # position ids of the language model
    encoded: dict[str, EncodedImages] = field(default_factory=dict)
    length: int = 0  # of the full sequence
    query_mask: Tensor | None = None  # (B, L) 1 for the tokens before answers, from labels
    answer_mask: Tensor | None = None  # (B, L) bool, the answers, from labels
    questions: Tensor | list[str] | None = None  # given by the caller: (B, L) bool, or texts
    #: By row and sample: the positions of the question, and a note where they are not exact.
    question_cache: dict[tuple[int, int], tuple[Tensor, str]] = field(default_factory=dict)
    masks: SequenceMasks | None = None  # masks of the call


@dataclass
class TokenSelector:
    """Runs the early steps of a plan on the images of a batch."""

    family: Family
    core: Any
    plan: Plan
    tower: EncoderSpec
    needs: tuple[Need, ...]
    notes: tuple[str, ...]
    text_features: Tensor | None
    question_finder: QuestionFinder

    def select_batch(self, context: ForwardContext, embeds: Tensor) -> tuple[list[PlacedSelection], list[ImageReport]]:
        """Select the tokens of all images in this pass, and report on each image.

        Args:
            context: The forward pass.
            embeds: (B, L, D), the input of the language model.

        Raises:
            FoveateError: the prompts and the images do not fit each other.
        """
        selections: list[PlacedSelection] = []
        reports: list[ImageReport] = []
        for modality, encoded in context.encoded.items():
            places = self._placeholders(context, modality)
            if places is None or not encoded.layouts:
                continue
            ids = context.arguments.get("input_ids")
            if not encoded.continues(ids):
                encoded.prompt_ids, encoded.selections, encoded.decisions = ids, [], {}
            for number, rows in enumerate(rows_of_images(places, [layout.count for layout in encoded.layouts])):
                row, columns = rows[0]
                if number == len(encoded.selections):
                    encoded.selections.append(self._select_image(context, modality, encoded, row, columns, embeds))
                selection, report = encoded.selections[number]
                selections += [PlacedSelection(r, c, selection) for r, c in rows]
                reports.append(report)
        return selections, reports

    def _placeholders(self, context: ForwardContext, modality: str) -> Tensor | None:
        """(B, L) bool, positions of the tokens of a modality; None where it has none."""
        token = self.family.placeholder(self.core, modality)
        if token is None:
            return None
        ids: Tensor | None = context.arguments.get("input_ids")
        if ids is not None:
            return ids == token
        embeds: Tensor = context.arguments["inputs_embeds"]
        placeholder = self.core.get_input_embeddings()(torch.tensor(token, device=embeds.device))
        return (embeds == placeholder).all(dim=-1)

    def _select_image(
        self,
        context: ForwardContext,
        modality: str,
        encoded: EncodedImages,
        row: int,
        columns: Tensor,
        embeds: Tensor,
    ) -> tuple[Selection, ImageReport]:
        number = len(encoded.selections)
        layout = encoded.layouts[number]
        measured = dict(encoded.measured[number])
        notes = dict.fromkeys(self.notes)
        for need in self.needs:
            if need.kind == "instruction":
                places, note = self._question(context, row, columns, embeds.shape[1])
                measured[need] = embeds[row, places].detach()
                notes |= {note: None} if note else {}
            elif need.kind == "first_layer_attention":
                measured[need], note = self._first_layer(context, row, columns, embeds)
                notes |= {note: None} if note else {}
            elif need.kind == "text_feature" and self.text_features is not None:
                measured[need] = self._text_feature(self.text_features, row, len(embeds))
        if modality == "video":
            layout = replace(layout, timestamps=self._timestamps(context, encoded, row, columns))
        tokens = VisualTokens(
            embeds[row, columns].detach(),
            layout.crops,
            {need: value.to(embeds.device) for need, value in measured.items()},
            layout.separators,
            layout.size,
            self._images_before(context, encoded, modality, row, columns),
            self.tower,
            None if layout.timestamps is None else layout.timestamps.to(embeds.device),
        )
        selection = Selection(torch.arange(len(tokens), device=embeds.device))
        steps = []
        early_steps = self.plan.early_steps
        for step in early_steps:
            if encoded.merged_selections is not None and step is early_steps[0]:
                # The tower gave every patch the feature of its merged row: one token per row is enough.
                merged = encoded.merged_selections[number]
                merges = merged.assignment is not None
                features = None
                if merged.weights is not None:  # after interpolation the tokens of a row differ
                    if getattr(step.method, "virtual", False):
                        raise FoveateError(
                            f"{step.method.name} attends as if nothing had been merged, which needs equal tokens; this "
                            "model interpolates those of large images. Give it virtual=False, or smaller images."
                        )
                    features = merged.apply(tokens.features)
                elif merges:
                    features = tokens.features[merged.indices]
                selection = Selection(merged.indices, features, merged.assignment, merged.weights, raster=merged.raster)
                steps.append(StepReport(str(step), step.method.site, len(tokens), len(selection), 0.0))
                tokens = tokens.take(selection)
                continue
            assert isinstance(step.method, PreLLMMethod)
            start = time.perf_counter()
            with torch.no_grad():
                step_selection = step.method(tokens, step.count(len(tokens)))
            milliseconds = 1000 * (time.perf_counter() - start)
            steps.append(StepReport(str(step), step.method.site, len(tokens), len(step_selection), milliseconds))
            selection = selection.then(step_selection, layout.count)
            if step is not early_steps[-1]:
                tokens = tokens.take(step_selection)
        scores = {need: value for need, value in measured.items() if need.kind in SCORES}
        return selection, ImageReport(
            number, modality, row, layout, selection, tuple(steps), tuple(notes), measured=scores
        )

    def _timestamps(self, context: ForwardContext, encoded: EncodedImages, row: int, columns: Tensor) -> Tensor | None:
        """(T,) seconds of the frames of the next clip, from its layout, the model's arguments or its prompt."""
        clip, layout = len(encoded.selections), encoded.layouts[len(encoded.selections)]
        frames = layout.crops
        if layout.timestamps is not None:
            return layout.timestamps
        times = self.family.timestamps(self.core, context.arguments, clip, len(encoded.layouts), len(frames))
        ids, side = context.arguments.get("input_ids"), self.family.written_times
        if times is not None or ids is None or side is None or self.question_finder.reader is None:
            return times
        ends = [(int(columns[crop.index[0]]), int(columns[crop.index[-1]]) + 1) for crop in frames]
        written = written_times(self.question_finder.reader, ids[row].tolist(), ends, side)
        return None if written is None else torch.tensor(written, dtype=torch.float32)

    def _images_before(
        self, context: ForwardContext, encoded: EncodedImages, modality: str, row: int, columns: Tensor
    ) -> int:
        """Number of images before this one in its sample; the same alone, in a batch and in a packed row."""
        earlier = [report for _, report in encoded.selections if report.row == row]
        same_sample = None if context.masks is None else context.masks.same_sample(row, columns)
        if same_sample is None or not earlier:
            return len(earlier)
        places = self._placeholders(context, modality)
        if places is None:
            return len(earlier)
        image_columns, first, count = places[row].nonzero().flatten(), 0, 0
        for report in earlier:
            count += bool(same_sample[image_columns[first : first + report.layout.count]].any())
            first += report.layout.count
        return count

    @staticmethod
    def _text_feature(features: Tensor, row: int, rows: int) -> Tensor:
        """(d,) the text feature of a row's prompt; beams and several answers repeat prompts."""
        if features.ndim == 1:
            return features
        if rows % len(features):
            raise FoveateError(
                f"text_features are of {len(features)} prompts, and this batch has {rows}; give one per prompt."
            )
        return features[row * len(features) // rows]

    def _question(self, context: ForwardContext, row: int, columns: Tensor, length: int) -> tuple[Tensor, str]:
        """(T,) the positions of the question, and a note where they are not exact, else ""."""
        # Other samples packed into the row do not count.
        same_sample = None if context.masks is None else context.masks.same_sample(row, columns)
        key = row, -1 if same_sample is None else int(columns[0])
        if key in context.question_cache:
            return context.question_cache[key]
        ids: Tensor | None = context.arguments.get("input_ids")
        questions = context.questions
        if same_sample is None:
            sample = torch.arange(length, device=columns.device)
        else:
            sample = same_sample.to(columns.device).nonzero().flatten()
        if torch.is_tensor(questions):
            rows = len(context.arguments["inputs_embeds"] if ids is None else ids)
            if questions.shape[1] != length or rows % len(questions):
                raise FoveateError(
                    f"the mask of the question is {tuple(questions.shape)}; give one of ({rows}, {length})."
                )
            mask = questions[row * len(questions) // rows].to(columns.device)
            question = sample[mask[sample].nonzero().flatten()], ""
        elif ids is None:
            text = self._text(context, row, columns, length)
            note = "the prompt came without ids: all text after the image is used as the question"
            return _after(text, columns).nonzero().flatten(), note  # different for each image
        elif questions is not None:
            if len(ids) % len(questions):
                raise FoveateError(
                    f"{len(questions)} questions were given for {len(ids)} prompts; give one per prompt."
                )
            places = self.question_finder.find_text(
                ids[row, sample].tolist(), questions[row * len(questions) // len(ids)]
            )
            question = sample[torch.tensor(places, dtype=torch.int64, device=columns.device)], ""
        else:
            answers = (
                None if context.answer_mask is None else context.answer_mask[row].to(columns.device)[sample].tolist()
            )
            text = self._text(context, row, columns, length)[sample]
            places, note = self.question_finder.find(ids[row, sample].tolist(), text.tolist(), answers)
            question = sample[torch.tensor(places, dtype=torch.int64, device=columns.device)], note
        context.question_cache[key] = question
        return question

    def _text(self, context: ForwardContext, row: int, columns: Tensor, length: int) -> Tensor:
        """(L,) bool, text tokens: neither padding nor within an image; text between frames is within a clip.

        Only those in the same sample as an image at `columns`.
        """
        text: Tensor | None = None
        for modality in MODALITIES:
            places = self._placeholders(context, modality)
            if places is None:
                continue
            text = torch.ones_like(places[row]) if text is None else text
            text &= ~places[row]
            encoded = context.encoded.get(modality)
            if encoded is not None and encoded.layouts:
                for rows in rows_of_images(places, [layout.count for layout in encoded.layouts]):
                    for image_row, image in rows:
                        if image_row == row and len(image):
                            text[image[0] : image[-1] + 1] = False
        if text is None:
            raise FoveateError(
                f"{self.plan} needs a question next to images, and the prompt has no images; leave the question out."
            )
        if context.masks is not None:
            text &= context.masks.padding_mask[row, -length:].to(text.device) > 0
            same_sample = context.masks.same_sample(row, columns)
            text = text if same_sample is None else text & same_sample.to(text.device)
        return text

    def _first_layer(self, context: ForwardContext, row: int, columns: Tensor, embeds: Tensor) -> tuple[Tensor, str]:
        """(N,) first-layer attention from the question to an image's tokens, and a note.

        Words before the image cannot attend to it; if no word of the question comes after it, all text there is used.
        """
        positions = context.positions
        if positions is not None and positions.shape[-2] > 1:
            positions = positions[..., row : row + 1, :]
        rotated = queries_and_keys(self.family.text(self.core), embeds[row : row + 1].detach(), positions)
        query, key, scaling = rotated
        question, note = self._question(context, row, columns, embeds.shape[1])
        rows = question[question > columns[-1]]
        if not len(rows):
            rows = _after(self._text(context, row, columns, embeds.shape[1]), columns).nonzero().flatten()
            note = "the question is before the image and cannot attend to it: all text after the image is used"
        if not len(rows):
            raise FoveateError(
                f"{self.plan} needs the attention of text to an image, and the prompt has no text; add a question."
            )
        attention, masks = Attention(query[0], key[0], scaling), context.masks
        if masks is not None and masks.sample_ids is None and masks.pair_mask is not None:
            attention = replace(attention, allowed=masks.pair_mask[row][:, -embeds.shape[1] :])
        elif masks is not None:
            visible = masks.padding_mask[row, -embeds.shape[1] :].to(embeds.device) > 0
            if masks.sample_ids is not None:
                visible = visible & masks.sample_ids[row].eq(masks.sample_ids[row, columns[0]])
            attention = replace(attention, key_mask=visible)
        return attention.attention_received(rows, columns), note


def _after(text: Tensor, columns: Tensor) -> Tensor:
    """(L,) bool, the text after an image; all text where there is none."""
    after = text.clone()
    after[: int(columns[-1]) + 1] = False
    return after if bool(after.any()) else text


def rows_of_images(places: Tensor, counts: list[int]) -> list[list[tuple[int, Tensor]]]:
    """For every image the rows that contain it, with its columns.

    A row contains whole images, in order. Where `generate` repeats prompts for beams or several answers, each image is
    in as many neighbouring rows.

    Args:
        places: (B, L) bool, positions of image tokens.
        counts: Tokens of every encoded image, in order.

    Raises:
        FoveateError: the placeholders do not match these images.
    """
    per_row = places.sum(dim=1).tolist()
    total, encoded = sum(per_row), sum(counts)
    if not encoded or total % encoded:
        raise FoveateError(
            f"the prompts have {total} placeholders for {encoded} visual tokens: images must be encoded with the "
            "prompt they belong to, all of it at once (no prefill_chunk_size)."
        )
    copies = total // encoded
    rows_of: list[list[tuple[int, Tensor]]] = [[] for _ in counts]
    rows = [row for row, count in enumerate(per_row) if count]
    image = 0
    for first in range(0, len(rows), copies):
        group = rows[first : first + copies]
        columns = [places[row].nonzero().flatten() for row in group]
        start = 0
        while start < len(columns[0]) and image < len(counts):
            stop = start + counts[image]
            for row, row_columns in zip(group, columns, strict=True):
                rows_of[image].append((row, row_columns[start:stop]))
            start, image = stop, image + 1
        if start != len(columns[0]):
            raise FoveateError("the placeholders of each prompt must be those of whole images, in order.")
    return rows_of
