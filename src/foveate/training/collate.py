"""Collate examples into the tensors of a training batch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from foveate.clips import Clip
from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.images import open_image
from foveate.models.video_connectors import ClipShape, VideoConnector
from foveate.training.architectures import ARCHITECTURES, architecture_of
from foveate.training.attention_supervision import (
    NO_TARGET,
    answer_thing_index,
    answer_token_indices,
    question_token_indices,
    thing_token_indices,
)
from foveate.training.dense_labels import UNKNOWN, cell_targets, colour_targets, page_targets, usual_cells
from foveate.training.examples import ROLES, Example, Place, Turn
from foveate.training.lengths import common_lengths, nested_part_of
from foveate.training.losses import IGNORED


class Collator:
    """Collates examples into model inputs, labels and targets of the other losses.

    Only the assistant's turns have labels: the tokens of each answer and the end token after it. Prompts,
    image tokens and padding carry the label -100. Rows are padded on the right.

    Args:
        processor: Processor of the model that is trained.
        answers: Produce `input_ids`, `attention_mask` and `labels`.
        cells: Produce `cells`, the characters per cell of the final tokens.
        answer_attention: Produce `answer_targets`, the image token to attend to for every character of an answer.
        question_attention: Produce `question_targets`, the image tokens of the words of questions.
        pages: Produce `pages`, the characters that occur in an image.
        colours: Produce `colours`, the mean colours of the quarters of the final tokens.
        window: Resize images to this many patches a side (`recipe.Stage.window`).
        cell_grid: (rows, columns) of the cells of a final token; by default `supervision.usual_cells`.
        lengths: Produce `lengths`, the numbers of tokens that a nested connector is trained at.
        captions: Produce `captions`, what happens in every few frames of rendered clips, for a connector that learns
            from that.

    Raises:
        FoveateError: the model does not support windows, or has nothing that learns from captions.
    """

    def __init__(
        self,
        processor: Any,
        answers: bool = True,
        cells: bool = False,
        answer_attention: bool = False,
        question_attention: bool = False,
        pages: bool = False,
        colours: bool = False,
        window: int | None = None,
        cell_grid: tuple[int, int] | None = None,
        lengths: bool = False,
        captions: bool = False,
    ) -> None:
        connector = getattr(processor, "connector", None)
        if isinstance(connector, VideoConnector) and (cells or colours or pages or window is not None or lengths):
            raise FoveateError(
                f"images and clips are read by the video connector {connector.name}: train on answers, without losses "
                "on characters, colors and pages, without `window`, and with `lengths: full`."
            )
        if (answer_attention or question_attention) and connector is not None and not connector.spatial:
            raise FoveateError(
                "attention supervision needs tokens that stand for parts of the image or clip, and those of "
                f"{connector.name} do not."
            )
        self.caption_frames = _caption_frames(connector) if captions else None
        self.processor = processor
        self.architecture = architecture_of(processor)
        self.stages = self.architecture.stages_of_processor(processor)
        self.answers = answers
        self.cells = cells
        self.answer_attention = answer_attention
        self.question_attention = question_attention
        self.pages = pages
        self.colours = colours
        self.window = window
        self.lengths = lengths
        self.cell_grid = cell_grid or usual_cells(self.stages)
        encoder = getattr(processor, "encoder_config", None)
        if encoder is not None and not encoder.spatial and (cells or colours or answer_attention or question_attention):
            raise FoveateError(
                f"tokens of the encoder {encoder.model_type} stand for no part of the image: leave out the losses "
                "cells, early_cells, colours, answer_attention and question_attention."
            )
        layout = getattr(processor, "layout", None)
        if layout is not None and (
            cells or colours or answer_attention or question_attention or pages or window is not None or lengths
        ):
            raise FoveateError(
                f"images are views of the layout {layout.name}: train on answers alone, without losses on characters, "
                "colors, pages and attention, without `window`, and with `lengths: full`."
            )
        if window is not None and not self.architecture.has_window():
            able = ", ".join(name for name, architecture in ARCHITECTURES.items() if architecture.has_window())
            raise FoveateError(
                f"`window` is for {able}; leave it out for {self.architecture.name}, whose images keep their sizes."
            )

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Collate a batch: inputs of the vision tower and the requested targets.

        `input_ids`, `attention_mask` and `labels` are (B, T); `cells` is (L', cells), `pointers` (B, T), `pages`
        (n, classes), `colours` (L', 12), `lengths` (lengths,), absent without images; `captions` (K, L).

        Raises:
            FoveateError: an image or a clip cannot be opened, or the chat template does not fit (see `encode`), or the
                images have no length in common.
        """
        images_by_example = [[open_image(image) for image in example.images] for example in examples]
        clips_by_example = [example.read_clips() for example in examples]
        flat = [image for example_images in images_by_example for image in example_images]
        batch: dict[str, torch.Tensor] = {}
        grids: list[tuple[int, int]] = []
        if flat:
            tower_inputs, grids = self.architecture.images(self.processor, flat, self.window)
            batch |= tower_inputs
        clips = [clip for example_clips in clips_by_example for clip in example_clips]
        clip_grids: list[tuple[int, int, int]] = []
        if clips:
            clip_inputs, clip_grids = self.architecture.clips(self.processor, clips)
            batch |= clip_inputs
        if self.caption_frames is not None:
            batch["captions"] = _captions(examples, clips_by_example, self.caption_frames)
        if self.cells and flat:
            batch["cells"] = self._cell_targets(examples, images_by_example, grids)
        if self.pages and flat:
            pages = [
                page_targets(None if example.characters is None else example.characters[index])
                for example in examples
                for index in range(len(example.images))
            ]
            batch["pages"] = torch.from_numpy(np.stack(pages))
        if self.colours and flat:
            colours = [colour_targets(image, self._token_grid(grid)) for image, grid in zip(flat, grids, strict=True)]
            batch["colours"] = torch.from_numpy(np.concatenate(colours))
        if self.lengths and flat:
            read = (Grid(*self._token_grid(grid)) for grid in grids)
            batch["lengths"] = torch.tensor(common_lengths(nested_part_of(self.processor), read))
        if self.answers:
            batch |= self._text(examples, images_by_example, grids, clips_by_example, iter(clip_grids))
        return batch

    def encode(self, conversations: Sequence[Turn], grids: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
        """Encode one conversation, whose images and clips have the patch grids `grids`, as token ids and labels.

        Raises:
            FoveateError: the conversation has no answer; or the template rewrites the text before an answer, or does
                not end an answer with the end token, so that the labelled tokens cannot be separated.
        """
        messages = [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in conversations]
        ids = self._tokenize(messages, grids)
        labels = [IGNORED] * len(ids)
        end = self.processor.tokenizer.eos_token_id
        learned = False
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._tokenize(messages[:index], grids, prompt=True)
            through = ids if index + 1 == len(messages) else self._tokenize(messages[: index + 1], grids)
            if ids[: len(before)] != before or ids[: len(through)] != through:
                raise FoveateError(
                    "the chat template rewrites earlier turns of a conversation, so answers cannot be separated "
                    "from prompts; give the processor a template that only appends."
                )
            answer = through[len(before) :]
            if end not in answer:
                raise FoveateError(
                    f"the chat template does not end an answer with the end token "
                    f"{self.processor.tokenizer.eos_token!r}, which the model must learn; give it one that does."
                )
            stop = len(before) + answer.index(end) + 1
            labels[len(before) : stop] = ids[len(before) : stop]
            learned = True
        if not learned:
            raise FoveateError("a conversation has no turn of `gpt` to learn from; give it one.")
        return ids, labels

    def _tokenize(
        self, messages: list[dict[str, str]], grids: Sequence[Sequence[int]], prompt: bool = False
    ) -> list[int]:
        """Token ids of the messages, with every placeholder expanded to the tokens of its image."""
        text = self._expand(messages, grids, prompt)
        return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _expand(self, messages: list[dict[str, str]], grids: Sequence[Sequence[int]], prompt: bool = False) -> str:
        """Text of the messages, with every placeholder expanded to the tokens of its image."""
        tokenizer = self.processor.tokenizer
        text = tokenizer.apply_chat_template(
            messages, chat_template=self.processor.chat_template, tokenize=False, add_generation_prompt=prompt
        )
        remaining = {self.processor.image_token: iter([grid for grid in grids if len(grid) == 2])}
        if clip_grids := [grid for grid in grids if len(grid) == 3]:  # without a clip, its placeholder is text
            remaining[self.processor.video_token] = iter(clip_grids)
        return re.sub(
            "|".join(map(re.escape, remaining)),
            lambda place: self._visual_text(place[0], next(remaining[place[0]])),
            text,
        )

    def _visual_text(self, placeholder: str, grid: Sequence[int]) -> str:
        """The tokens of an image or clip.

        Args:
            placeholder: The one in the text.
            grid: (rows, columns) of patches, of a clip after the number of frames; with views, height and width in
                pixels.
        """
        if isinstance(connector := getattr(self.processor, "connector", None), VideoConnector) and len(grid) == 2:
            grid = (connector.image_frames, *grid)
        if len(grid) == 3:
            return placeholder * self._clip_shape(*grid).size
        if getattr(self.processor, "layout", None) is not None:
            return self.processor.text_of(*grid)
        rows, columns = self._read_grid(grid)
        return placeholder * (rows * columns) + getattr(self.processor, "after_image", "")

    def _text(
        self,
        examples: Sequence[Example],
        pictures: list[list],
        grids: list[tuple[int, int]],
        clips: list[list[Clip]],
        clip_grids: Iterator[tuple[int, int, int]],
    ) -> dict[str, torch.Tensor]:
        rows = []
        answer_targets: list[list[int]] = []
        question_targets: list[list[int]] = []
        start = 0
        for example, images, example_clips in zip(examples, pictures, clips, strict=True):
            stop = start + len(images)
            of_clips = [next(clip_grids) for _ in example_clips]
            rows.append(self.encode(example.conversations, [*grids[start:stop], *of_clips]))
            if self.answer_attention:
                answer_targets.append(
                    self._answer_targets(example, images, grids[start:stop], *rows[-1])
                    if not of_clips
                    else self._clip_answer_targets(example, example_clips, of_clips, *rows[-1])
                )
            if self.question_attention:
                question_targets.append(
                    self._question_targets(example, images, grids[start:stop], rows[-1][0])
                    if not of_clips
                    else self._clip_question_targets(example, example_clips, of_clips, rows[-1][0])
                )
            start = stop
        length = max(len(ids) for ids, _ in rows)
        input_ids = torch.full((len(rows), length), self.processor.tokenizer.pad_token_id, dtype=torch.long)
        labels = torch.full((len(rows), length), IGNORED, dtype=torch.long)
        attention_mask = torch.zeros((len(rows), length), dtype=torch.long)
        for row, (ids, row_labels) in enumerate(rows):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            labels[row, : len(ids)] = torch.tensor(row_labels)
            attention_mask[row, : len(ids)] = 1
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        batch |= self.architecture.text_inputs(self.processor, input_ids)
        batch |= self.architecture.instructions(self.processor, examples)
        for name, places in (("answer_targets", answer_targets), ("question_targets", question_targets)):
            if places:
                batch[name] = torch.full_like(labels, NO_TARGET)
            for row, positions in enumerate(places):
                batch[name][row, : len(positions)] = torch.tensor(positions)
        return batch

    def _answer_targets(
        self, example: Example, pictures: list, grids: Sequence[Sequence[int]], ids: list[int], labels: list[int]
    ) -> list[int]:
        """For every position, the position of the image token that contains the character predicted there.

        `NO_TARGET` where that is unknown: without characters, for several images, for answers that are not in
        the image or not one token per character.
        """
        targets = [NO_TARGET] * len(ids)
        if example.characters is None or len(pictures) != 1:
            return targets
        rows, columns = self._read_grid(grids[0])
        image = ids.index(self.processor.image_token_id)
        questions = [turn["value"] for turn in example.conversations if turn["from"] == "human"]
        place, things = (pictures[0].size, (rows, columns)), example.things[0] if example.things else ()
        for question, (answer, begin, end) in zip(questions, _answers(example, labels), strict=True):
            token_indices = answer_token_indices(answer, example.characters[0], *place)
            if (thing := answer_thing_index(question, answer, things, *place)) is not None:
                token_indices = [thing] * len(answer)
            if token_indices is not None and end - begin == len(answer) + 1:  # the end token follows
                for offset, token_index in enumerate(token_indices):
                    # Position i predicts token i + 1.
                    targets[begin + offset - 1] = NO_TARGET if token_index == NO_TARGET else image + token_index
        return targets

    def _question_targets(
        self, example: Example, pictures: list, grids: Sequence[Sequence[int]], ids: list[int]
    ) -> list[int]:
        """For every position, the position of the image token that contains the character read there.

        `NO_TARGET` for all but words of questions that occur once in the image, and for tokens of more than one
        character.
        """
        targets = [NO_TARGET] * len(ids)
        if example.characters is None or len(pictures) != 1:
            return targets
        image = ids.index(self.processor.image_token_id)
        grid = self._read_grid(grids[0])
        for question, positions in self._questions(example, grids, self.processor.image_token):
            token_indices = question_token_indices(question, example.characters[0], pictures[0].size, grid)
            for position, token_index in zip(positions, token_indices, strict=True):
                if token_index != NO_TARGET and position is not None:
                    targets[position] = image + token_index
            things = example.things[0] if example.things else ()
            for offset, token_index in thing_token_indices(question, things, pictures[0].size, grid).items():
                if (position := positions[offset]) is not None:
                    targets[position] = image + token_index
        return targets

    def _questions(
        self, example: Example, grids: Sequence[Sequence[int]], placeholder: str
    ) -> Iterator[tuple[str, list[int | None]]]:
        """Questions of a conversation, without `placeholder`, each with the positions of its characters in the ids.

        None where a token has more than one character.
        """
        messages = [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in example.conversations]
        text = self._expand(messages, grids)
        offsets = self.processor.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]
        position = {start: number for number, (start, end) in enumerate(offsets) if end - start == 1}
        begin = 0
        for message in messages:
            said = message["content"].rpartition(placeholder)[2]
            begin = text.index(said, begin)
            if message["role"] == "user":
                yield said, [position.get(begin + offset) for offset in range(len(said))]
            begin += len(said)

    def _clip_token(self, place: Place, clip: Clip, grid: tuple[int, int, int]) -> int:
        """Index of the token of a clip that shows a place, in the order of the language model."""
        frames, rows, columns, _ = self._clip_shape(*grid)
        (second, x, y), (width, height) = place, clip.size
        shown = max(int(np.searchsorted(clip.timestamps, second + 1e-6, side="right")) - 1, 0)
        frame = shown * frames // len(clip.timestamps)
        row = min(max(int(y * rows / height), 0), rows - 1)
        column = min(max(int(x * columns / width), 0), columns - 1)
        return (frame * rows + row) * columns + column

    def _clip_answer_targets(
        self,
        example: Example,
        clips: list[Clip],
        grids: list[tuple[int, int, int]],
        ids: list[int],
        labels: list[int],
    ) -> list[int]:
        """`_answer_targets` of an example of one clip: the tokens that show the answers, where that is known."""
        targets = [NO_TARGET] * len(ids)
        if len(clips) != 1 or not example.places:
            return targets
        start = ids.index(self.processor.video_token_id)
        for (answer, begin, end), places in zip(_answers(example, labels), example.places, strict=False):
            if places and end - begin == len(answer) + 1:  # one token per character, and the end token
                tokens = [start + self._clip_token(place, clips[0], grids[0]) for place in places]
                for offset in range(len(answer)):
                    targets[begin + offset - 1] = tokens[offset if len(tokens) > 1 else 0]
        return targets

    def _clip_question_targets(
        self, example: Example, clips: list[Clip], grids: list[tuple[int, int, int]], ids: list[int]
    ) -> list[int]:
        """`_question_targets` of an example of one clip: at the end of a name, the token that shows what has it."""
        targets = [NO_TARGET] * len(ids)
        if len(clips) != 1 or not example.named:
            return targets
        start = ids.index(self.processor.video_token_id)
        for question, positions in self._questions(example, grids, self.processor.video_token):
            for name, place in example.named.items():
                at = question.find(name)
                # Tokens attend to what is before them: the last character of a name is the first that knows all of it.
                position = positions[at + len(name) - 1] if at >= 0 else None
                if position is not None:
                    targets[position] = start + self._clip_token(place, clips[0], grids[0])
        return targets

    def _cell_targets(
        self, examples: Sequence[Example], pictures: list[list], grids: list[tuple[int, int]]
    ) -> torch.Tensor:
        targets = []
        remaining = iter(grids)
        for example, row in zip(examples, pictures, strict=True):
            for index, picture in enumerate(row):
                tokens = self._token_grid(next(remaining))
                if example.characters is None:
                    cells = self.cell_grid[0] * self.cell_grid[1]
                    targets.append(np.full((tokens[0] * tokens[1], cells), UNKNOWN, dtype=np.int64))
                else:
                    drawn = [*example.characters[index], *(example.things[index] if example.things else ())]
                    targets.append(cell_targets(drawn, picture.size, tokens, self.cell_grid))
        return torch.from_numpy(np.concatenate(targets))

    def _token_grid(self, grid: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of the tokens that leave the encoder, from those of the patches."""
        return grid[0] >> self.stages, grid[1] >> self.stages

    def _read_grid(self, grid: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of the tokens that the language model reads, from those of the patches."""
        connector = getattr(self.processor, "connector", None)
        if isinstance(connector, VideoConnector):
            shape = self._clip_shape(connector.image_frames, *grid)
            return shape.rows, shape.columns
        tokens = Grid(*self._token_grid(grid))
        return tokens if connector is None else connector.output_grid(tokens)

    def _clip_shape(self, frames: int, rows: int, columns: int) -> ClipShape:
        """Tokens that the language model reads of a clip, from its patches."""
        connector = getattr(self.processor, "connector", None)
        if isinstance(connector, VideoConnector):
            return connector.output_shape(frames, Grid(rows, columns))
        return ClipShape(frames, *self._token_grid((rows, columns)))


def _answers(example: Example, labels: list[int]) -> Iterator[tuple[str, int, int]]:
    """Answers of a conversation, each with the first position of its tokens and the one after their end token."""
    learned = [label != IGNORED for label in labels]
    begin = 0
    for turn in example.conversations:
        if turn["from"] == "gpt":
            begin = learned.index(True, begin)
            end = learned.index(False, begin) if False in learned[begin:] else len(learned)
            yield turn["value"], begin, end
            begin = end


def _caption_frames(connector: Any) -> int:
    """Frames of a caption of a connector, whose words must be those of captions of rendered clips.

    Raises:
        FoveateError: it learns from no captions, or its small language model has other words.
    """
    from foveate.synthetic.clips.captions import END, WORDS

    frames = getattr(connector, "caption_frames", None)
    if frames is None:
        raise FoveateError(
            "loss.captions trains the small language model of the connector langdc, which this model does not have; "
            "leave it out."
        )
    options = connector.options
    if options.vocabulary != len(WORDS) or options.stop != (END,):
        raise FoveateError(
            f"captions of rendered clips have {len(WORDS)} words, and {END} ends them: give the connector "
            f"{connector.name} `vocabulary: {len(WORDS)}` and `stop: [{END}]`."
        )
    return frames


def _captions(examples: Sequence[Example], clips: Sequence[Sequence[Clip]], frames: int) -> torch.Tensor:
    """Tokens `(K, L)` of the captions of all clips, with `IGNORED` behind them."""
    from foveate.synthetic.clips.captions import captions, word_ids

    rows = []
    for example, (clip,) in zip(examples, clips, strict=True):
        assert example.scene is not None  # the stage has rendered clips alone
        rows += [torch.tensor(word_ids(text)) for text in captions(example.scene, clip.timestamps, frames)]
    return pad_sequence(rows, batch_first=True, padding_value=IGNORED)
