"""LangDC: pooled tokens of the frames, and the states of a small language model that describes every few frames."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2Model

from foveate import compat
from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors.configured import whole_number
from foveate.models.video_connectors.connector import ClipShape, ConnectorOptions, Instruction, VideoConnector
from foveate.models.video_connectors.mlp import MLP, released_mlp

_SIZES = ("clip_frames", "pooled_image", "pooled_video", "caption_image", "caption_video", "tokens",
          "vocabulary", "width", "layers", "heads", "key_value_heads", "hidden")  # fmt: skip


@dataclass(frozen=True)
class LangDCOptions(ConnectorOptions):
    """Options of `LangDC`; the defaults are those of the paper, with the sizes and tokens of Qwen2.5-0.5B.

    Args:
        clip_frames: Frames that one caption is about.
        pooled_image: Rows and columns of a frame in the sequence, of the features of the image encoder.
        pooled_video: The same of the video encoder.
        caption_image: Rows and columns of a frame that the small language model reads, of the image encoder.
        caption_video: The same of the video encoder.
        tokens: Most tokens of a caption.
        layer: The hidden state of the small language model that soft tokens are: 0 is its embeddings, 1 the output of
            its first layer, -1 that of its last one, normalized.
        stop: Tokens that end a caption; batches of the authors are padded with the last one.
        form: "paper": all tokens before the one that ends the caption; "released": as the authors' code counts them.
        before: Tokens of the small language model before the frames.
        after: Tokens behind the frames, which ask for the caption.
        projector: Of soft tokens.
        video_width: Width of the features of a video encoder, which `read` takes; None: both branches read the
            features of the vision tower.
        vocabulary: Of the small language model.
        width: Of the small language model.
        layers: Of the small language model.
        heads: Of the small language model.
        key_value_heads: Of the small language model.
        hidden: Width of its MLPs.
    """

    clip_frames: int = 4
    pooled_image: int = 6
    pooled_video: int = 4
    caption_image: int = 12
    caption_video: int = 8
    tokens: int = 256
    layer: int = -1
    stop: tuple[int, ...] = (151645, 151643)
    form: Literal["paper", "released"] = "paper"
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    projector: Literal["mlp", "linear"] = "mlp"
    video_width: int | None = None
    vocabulary: int = 151936
    width: int = 896
    layers: int = 24
    heads: int = 14
    key_value_heads: int = 2
    hidden: int = 4864

    def __post_init__(self) -> None:
        for name in _SIZES:
            whole_number(name, getattr(self, name))
        if self.video_width is not None:
            whole_number("video_width", self.video_width)
        for name in ("stop", "before", "after"):
            words = getattr(self, name)
            if not isinstance(words, tuple) or not all(
                isinstance(word, int) and 0 <= word < self.vocabulary for word in words
            ):
                raise FoveateError(f"{name} must be a list of tokens from 0 to {self.vocabulary - 1}, not {words!r}.")
        if not self.stop:
            raise FoveateError("stop must name a token that ends captions.")
        if not isinstance(self.layer, int) or not -self.layers - 1 <= self.layer <= self.layers:
            raise FoveateError(
                f"layer must be a hidden state from 0 to {self.layers}, or from the end, not {self.layer!r}."
            )
        for name, possible in (("form", ("paper", "released")), ("projector", ("mlp", "linear"))):
            if getattr(self, name) not in possible:
                raise FoveateError(f"{name} must be {' or '.join(possible)}, not {getattr(self, name)!r}.")


@dataclass(frozen=True)
class Caption:
    """A caption as a small language model writes it.

    Args:
        ids: `(n,)` its tokens, with the one that ends it, if there is one.
        states: `(n, width)` the hidden state that each of them is predicted from.
    """

    ids: Tensor
    states: Tensor

    def __len__(self) -> int:
        return len(self.ids)


class LangDC(VideoConnector[LangDCOptions]):
    """Pools every frame, and lets a small language model describe every 4 frames: its states are tokens, too.

        pooled  = pool_6(MLP(image features)) of all frames, then pool_4(MLP(video features))
        caption = tokens that the small language model writes after pool_12(MLP(image features of 4 frames)),
                  pool_8(MLP(video features of 4 frames)), until one ends it
        tokens  = pooled, and MLP(hidden state that each token of each caption is predicted from)

    LangDC (arXiv 2509.00969), "Seeing More, Saying More: Lightweight Language Experts are Dynamic Video Token
    Compressors". What takes more words gets more tokens: captions are trained to be as long as there is much to see
    (`caption_loss`), and are written without gradients afterwards. Captions are greedy.

    The paper's image encoder is CLIP, and its video encoder InternVideo2, which is not among the encoders here: in a
    model of `foveate.models.llava_video` both branches read the features of its one vision tower. `read` takes the
    features of both encoders, with weights in the authors' layout (`released_keys`).

    The authors' code, with pooled tokens, takes the hidden state 0, that is, the embedding of the token before,
    whatever layer it is asked for; `layer` is free here. It ends a caption at the padding of the batch of all captions
    of a clip: of several tokens that end captions, one that is not padding counts as a word, and the longest caption
    loses its last token (`form="released"`).
    """

    name: ClassVar[str] = "langdc"
    title: ClassVar[str] = "Seeing More, Saying More: Lightweight Language Experts are Dynamic Video Token Compressors"
    paper: ClassVar[str] = "arXiv 2509.00969"
    spatial: ClassVar[bool] = False
    options_class: ClassVar = LangDCOptions
    released_keys: ClassVar[Mapping[str, str | tuple[str, ...]]] = {
        **released_mlp(r"^model\.image_mm_projector", "pooled_image"),
        **released_mlp(r"^model\.mm_projector", "pooled_video"),
        **released_mlp(r"^model\.cap_image_mm_projector", "caption_image"),
        **released_mlp(r"^model\.cap_mm_projector", "caption_video"),
        **released_mlp(r"^model\.llm_projector", "soft_projector"),
        r"^model\.llm_projector\.(weight|bias)$": r"soft_projector.\1",
        r"^model\.cap_light_llm\.model\.": "captioner.",
    }

    def __init__(self, vision_hidden_size: int, text_hidden_size: int, **options: Any) -> None:
        super().__init__(vision_hidden_size, text_hidden_size, **options)
        chosen = self.options
        if chosen.width % chosen.heads or chosen.heads % chosen.key_value_heads:
            raise FoveateError(
                f"the {chosen.heads} heads of langdc must divide the width {chosen.width}, and its "
                f"{chosen.key_value_heads} heads of keys must divide them."
            )
        video = vision_hidden_size if chosen.video_width is None else chosen.video_width
        self.pooled_image = MLP(vision_hidden_size, text_hidden_size)
        self.pooled_video = MLP(video, text_hidden_size)
        self.caption_image = MLP(vision_hidden_size, chosen.width)
        self.caption_video = MLP(video, chosen.width)
        self.captioner = Qwen2Model(
            Qwen2Config(
                vocab_size=chosen.vocabulary,
                hidden_size=chosen.width,
                intermediate_size=chosen.hidden,
                num_hidden_layers=chosen.layers,
                num_attention_heads=chosen.heads,
                num_key_value_heads=chosen.key_value_heads,
                rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            )
        )
        layer = nn.Linear if chosen.projector == "linear" else MLP
        self.soft_projector: nn.Module = layer(chosen.width, text_hidden_size)
        self._references: tuple[Iterator[Tensor], list[tuple[Tensor, Tensor]]] | None = None

    @property
    def static_count(self) -> bool:
        """See `VideoConnector.static_count`: captions end where they end."""
        return False

    @property
    def static_cost(self) -> bool:
        """See `VideoConnector.static_cost`."""
        return False

    def shape(self, frames: int, grid: Grid, budget: int | None) -> ClipShape:
        """See `VideoConnector.shape`: one row.

        Raises:
            FoveateError: Frames have fewer rows or columns than they are pooled to.
        """
        chosen = self.options
        side = max(chosen.pooled_image, chosen.pooled_video, chosen.caption_image, chosen.caption_video)
        if side > min(grid):
            raise FoveateError(
                f"the connector langdc pools frames to {side} x {side}, and these have {grid.rows} x {grid.columns}."
            )
        captions = -(-frames // chosen.clip_frames) * chosen.tokens
        return ClipShape(1, 1, frames * (chosen.pooled_image**2 + chosen.pooled_video**2) + captions)

    @property
    def caption_frames(self) -> int:
        """See `VideoConnector.caption_frames`."""
        return self.options.clip_frames

    @contextmanager
    def supervised(self, captions: Sequence[Tensor]) -> Generator[list[tuple[Tensor, Tensor]]]:
        """Score reference captions in the next pass.

        Args:
            captions: Tokens `(n,)` of all captions of all clips of that pass, in their order; see `caption_scores`.

        Yields:
            A list that gets the scores of every clip.

        Raises:
            FoveateError: There are more captions than clips have, or see `caption_scores`.
        """
        scores: list[tuple[Tensor, Tensor]] = []
        references = iter(captions)
        self._references = (references, scores)
        try:
            yield scores
        finally:
            self._references = None
        if rest := len(list(references)):
            raise FoveateError(f"the clips of this pass have {rest} fewer captions than were given.")

    def connect(
        self, features: Tensor, grid: Grid, shape: ClipShape, timestamps: Tensor | None, text: Instruction | None
    ) -> Tensor:
        """See `VideoConnector.connect`."""
        if self.options.video_width is not None:
            raise FoveateError("langdc with video_width reads the features of a video encoder as well: call read().")
        if self._references is not None:
            captions, scores = self._references
            count = -(-len(features) // self.options.clip_frames)
            scores.append(self.caption_scores(features, grid, list(islice(captions, count))))
        return self.read(features, features, grid, grid)

    def read(self, image: Tensor, video: Tensor, image_grid: Grid, video_grid: Grid) -> Tensor:
        """Tokens `(n, d)` of a clip.

        Args:
            image: `(T, N, D)` of the image encoder.
            video: `(T, M, D')` of the video encoder.
            image_grid: Rows and columns of `image`.
            video_grid: Of `video`.
        """
        chosen = self.options
        captions = self.captions(image, video, image_grid, video_grid)
        soft = torch.cat(
            [caption.states[:count] for caption, count in zip(captions, self.lengths(captions), strict=True)]
        )
        return torch.cat(
            [
                pooled(self.pooled_image(image), image_grid, chosen.pooled_image).flatten(0, 1),
                pooled(self.pooled_video(video), video_grid, chosen.pooled_video).flatten(0, 1),
                self.soft_projector(soft),
            ]
        )

    def lengths(self, captions: Sequence[Caption]) -> list[int]:
        """Numbers of soft tokens of the captions of a clip."""
        stop, longest = set(self.options.stop), max(map(len, captions))
        if self.options.form == "paper":
            return [len(caption) - (int(caption.ids[-1]) in stop) for caption in captions]
        padding = self.options.stop[-1]
        ends = [len(caption) - (int(caption.ids[-1]) == padding) for caption in captions]
        return [min(end, longest - 1) for end in ends]

    def prompts(self, image: Tensor, video: Tensor, image_grid: Grid, video_grid: Grid) -> list[Tensor]:
        """What the small language model reads before it writes: `(n, S, width)` of clips of as many frames.

        The last frames, if they are fewer than those of a clip, are another entry.
        """
        chosen, embed = self.options, self.captioner.embed_tokens
        frames = (
            pooled(self.caption_image(image), image_grid, chosen.caption_image),
            pooled(self.caption_video(video), video_grid, chosen.caption_video),
        )
        rest = len(image) % chosen.clip_frames
        whole = len(image) - rest
        parts = [(0, whole // chosen.clip_frames, chosen.clip_frames)] if whole else []
        prompts = []
        for first, count, size in [*parts, (whole, 1, rest)] if rest else parts:
            patches = [part[first : first + count * size].reshape(count, -1, chosen.width) for part in frames]
            words = [
                embed(torch.tensor(ids, dtype=torch.int64, device=image.device)).expand(count, -1, -1)
                for ids in (chosen.before, chosen.after)
            ]
            prompts.append(torch.cat([words[0].to(patches[0]), *patches, words[1].to(patches[0])], dim=1))
        return prompts

    @torch.no_grad()
    def captions(self, image: Tensor, video: Tensor, image_grid: Grid, video_grid: Grid) -> list[Caption]:
        """Captions of the clips of a video, in the order of time; see `read`."""
        prompts = self.prompts(image, video, image_grid, video_grid)
        training = self.captioner.training
        self.captioner.eval()  # in training, checkpointed layers would read no cache
        try:
            return [caption for prompt in prompts for caption in self._written(prompt)]
        finally:
            self.captioner.train(training)

    def _written(self, prompts: Tensor) -> list[Caption]:
        """Greedy captions after prompts `(n, S, width)`."""
        stop = torch.tensor(self.options.stop, device=prompts.device)
        embed = self.captioner.embed_tokens
        states, ids = [], []
        ended = torch.zeros(len(prompts), dtype=torch.bool, device=prompts.device)
        inputs, cache = prompts, None
        for _ in range(self.options.tokens):
            output = self.captioner(
                inputs_embeds=inputs, use_cache=True, output_hidden_states=True, **compat.cache_argument(cache)
            )
            cache = compat.cache_of(output)
            states.append(output.hidden_states[self.options.layer][:, -1])
            ids.append(self._logits(output.last_hidden_state[:, -1]).argmax(dim=-1))
            ended = ended | torch.isin(ids[-1], stop)
            if bool(ended.all()):
                break
            inputs = embed(ids[-1])[:, None]
        rows, all_states = torch.stack(ids, dim=1), torch.stack(states, dim=1)
        ends = torch.isin(rows, stop)
        counts = torch.where(ends.any(dim=1), ends.to(torch.uint8).argmax(dim=1) + 1, rows.shape[1]).tolist()
        return [Caption(rows[row, :count], all_states[row, :count]) for row, count in enumerate(counts)]

    def _logits(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states; the output layer is the embeddings, as in Qwen2.5-0.5B."""
        return F.linear(hidden, self.captioner.embed_tokens.weight)

    def caption_loss(self, features: Tensor, grid: Grid, captions: Sequence[Tensor]) -> Tensor:
        """Mean cross entropy of reference captions: the training of the small language model and its projections.

        Arguments and errors are those of `caption_scores`.
        """
        return self.caption_scores(features, grid, captions)[0].mean()

    def caption_scores(self, features: Tensor, grid: Grid, captions: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Cross entropy of every token of reference captions, and whether it is the most probable one.

        Args:
            features: `(T, N, D)` of a clip.
            grid: Rows and columns of the features.
            captions: Tokens `(n,)` of a caption of every `clip_frames` frames, with the one that ends it.

        Returns:
            Both `(tokens,)`, of one caption after the other.

        Raises:
            FoveateError: There is another number of captions.
        """
        prompts = [one for part in self.prompts(features, features, grid, grid) for one in part]
        if len(prompts) != len(captions):
            raise FoveateError(f"these {len(features)} frames have {len(prompts)} captions, not {len(captions)}.")
        embed, losses, right = self.captioner.embed_tokens, [], []
        for prompt, words in zip(prompts, captions, strict=True):
            inputs = torch.cat([prompt, embed(words[:-1]).to(prompt)])[None]
            hidden = self.captioner(inputs_embeds=inputs, use_cache=False).last_hidden_state[0, -len(words) :]
            logits = self._logits(hidden).float()
            losses.append(F.cross_entropy(logits, words, reduction="none"))
            right.append(logits.argmax(dim=-1) == words)
        return torch.cat(losses), torch.cat(right)


def pooled(x: Tensor, grid: Grid, side: int) -> Tensor:
    """Tokens `(T, N, d)` of frames, averaged to `(T, side * side, d)`."""
    return F.adaptive_avg_pool2d(x.mT.unflatten(2, tuple(grid)), side).flatten(2).mT
