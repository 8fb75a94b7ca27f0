"""Base classes of methods inside the language model, and the tokens that they read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from foveate.core.attention import Attention
from foveate.core.errors import FoveateError
from foveate.core.method import Method, Positions, Site
from foveate.core.tokens import Crop, EncoderSpec, Need, Selection, check_finite, topk_indices

#: The layer whose attention is read: the one that has just run (FastV), or the one that is about to (PyramidDrop), at
#: the cost of its queries and keys.
AttentionSource = Literal["previous", "own"]


@dataclass(frozen=True, kw_only=True)
class PromptStates:
    """The sequence around an image, as input of a decoder layer.

    Args:
        hidden: (L, D) hidden states of all new tokens.
        text: (T,) indices of text tokens among them.
        asking: (a,) the last token of the prompt; in training the token before each answer.
        entered: (L0, D) the embeddings of all new tokens as they entered the first layer.
        columns: (L,) indices of the tokens of `hidden` among those of `entered`, -1 for padding.
        image: (N0,) indices of the full image among those of `entered`.
    """

    hidden: Tensor
    text: Tensor
    asking: Tensor
    entered: Tensor
    columns: Tensor
    image: Tensor


@dataclass(frozen=True, kw_only=True)
class EncoderResults:
    """Values of an image from its encoder.

    Args:
        tower: The encoder, so that a method can name its needs again: `tokens.get(*self.needs(tokens.encoder.tower))`.
        origin: (N,) indices of the image's tokens among those that the encoder made of it.
        measured: Values that probes measured, for all tokens that the encoder made; see `LayerTokens.get`.
        separators: (N,) bool, tokens of the layout, such as newlines between rows; None: there are none.
        layout: Returns the rectangles that the image's tokens come from; see `LayerTokens.crops`.
    """

    tower: EncoderSpec
    origin: Tensor
    measured: Mapping[Need, Tensor]
    separators: Tensor | None = None
    layout: Callable[[], tuple[Crop, ...]] | None = None


@dataclass(frozen=True, kw_only=True)
class ModelAccess:
    """What a method may ask of the language model; nothing is computed before it is asked for.

    Args:
        ask: Returns queries and keys of a layer; see `LayerTokens.attention`.
        norm: The model's final norm, for methods that compare tokens as the output layer reads them.
        neurons: Returns activations of the layer that has just run; see `LayerTokens.activations`.
    """

    ask: Callable[[AttentionSource], Attention]
    norm: Callable[[Tensor], Tensor]
    neurons: Callable[[], tuple[Tensor, Tensor]] | None = None


@dataclass(frozen=True, kw_only=True)
class EarlierLayers:
    """How many tokens of an image there were before, for methods whose layers share a budget.

    Args:
        made: Tokens that the encoder made.
        read: Tokens that each layer before the one about to run read.
        acted: Layers among these before which the same step acted.
    """

    made: int
    read: tuple[int, ...]
    acted: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class LayerTokens:
    """The visual tokens of one image, as input of a decoder layer.

    Args:
        features: (N, D) their hidden states.
        indices: (N,) their indices in the sequence, ascending.
        layer: The layer that is about to run, 0-based.
        num_layers: Layers of the language model.
        number: Which image of its prompt this is, for seeds.
        learning: Whether the model is in training, so that methods that sample in training do.
        prompt: The sequence around the image.
        encoder: What is known of the image from its encoder.
        model: What the method may ask of the language model.
        earlier: How many tokens earlier layers read.
    """

    features: Tensor
    indices: Tensor
    layer: int
    num_layers: int
    number: int
    learning: bool = False
    prompt: PromptStates
    encoder: EncoderResults
    model: ModelAccess
    earlier: EarlierLayers

    def __len__(self) -> int:
        return len(self.features)

    @property
    def device(self) -> torch.device:
        """Where the hidden states are."""
        return self.features.device

    @property
    def question(self) -> Tensor:
        """Indices (t,) of the text after the image, up to where an answer is asked for; all text if there is none."""
        text, asking = self.prompt.text, self.prompt.asking
        if len(asking):
            text = text[text <= asking[-1]]
        after = text[text > self.indices[-1]] if len(self) else text
        return after if len(after) else text

    @property
    def crops(self) -> tuple[Crop, ...]:
        """The image, its tiles or its frames; `index` are indices of tokens here, -1 for dropped ones."""
        return () if self.encoder.layout is None else self.encoder.layout()

    @property
    def answers(self) -> Tensor:
        """(N,) bool, tokens of the image at which an answer is asked for: the last one of a prompt that it ends."""
        return torch.isin(self.indices, self.prompt.asking)

    def without_answers(self) -> LayerTokens:
        """The image without the tokens at which an answer is asked for; these count as text."""
        answers = self.answers
        stays = (~answers).nonzero().flatten()
        new_index = torch.full((len(self) + 1,), -1, dtype=torch.int64, device=self.device)
        new_index[stays] = torch.arange(len(stays), device=self.device)
        neurons, separators = self.model.neurons, self.encoder.separators
        return replace(
            self,
            features=self.features[stays],
            indices=self.indices[stays],
            prompt=replace(self.prompt, text=torch.cat([self.prompt.text, self.indices[answers]]).sort().values),
            encoder=replace(
                self.encoder,
                origin=self.encoder.origin[stays],
                separators=None if separators is None else separators[stays],
                # -1, of padding and of dropped tokens, reads the last entry, which is -1.
                layout=lambda: tuple(
                    replace(crop, index=new_index[crop.index.to(new_index.device)]) for crop in self.crops
                ),
            ),
            model=replace(self.model, neurons=neurons and (lambda: _of_tokens(neurons(), stays))),
        )

    def get(self, need: Need) -> Tensor:
        """Values (N, ...) that a probe measured in the encoder; of a merged token, those of the token it replaces.

        Raises:
            FoveateError: it was not measured: the method did not declare that it needs it.
        """
        if need not in self.encoder.measured:
            raise FoveateError(f"{need} was not measured; a method must name it in `needs`.")
        return self.encoder.measured[need].to(self.device)[self.encoder.origin]

    def attention(self, source: AttentionSource) -> Attention:
        """Queries and keys of the layer that has just run ("previous") or of the one about to run ("own").

        Raises:
            FoveateError: the method did not declare that it asks the previous layer (`needs_previous_attention`).
        """
        return self.model.ask(source)

    def activations(self) -> tuple[Tensor, Tensor]:
        """Activations (N, F) of the image's tokens in the MLP that has just run, and the sentence's core neurons (c,).

        Raises:
            FoveateError: the method is no `NeuronMethod`.
        """
        if self.model.neurons is None:
            raise FoveateError("activations are there for methods that are NeuronMethods.")
        return self.model.neurons()


def _of_tokens(values: tuple[Tensor, Tensor], indices: Tensor) -> tuple[Tensor, Tensor]:
    """Activations of some of an image's tokens, and the core neurons, which are the sentence's."""
    activations, core = values
    return activations[indices], core


@dataclass(frozen=True)
class DecoderMethod(Method):
    """A method that drops or merges visual tokens between the layers of a language model.

    The runtime handles what is common to all: budgets, padding, positions, masks and caches. A method only selects. The
    last token of a prompt is never dropped: where a prompt ends in an image, the image's last token stays, and counts
    in the budget.
    """

    site: ClassVar[Site] = Site.DECODER
    takes_layers: ClassVar[bool] = True
    #: Of the remaining tokens, in later layers: the original ones, or counted anew.
    positions: ClassVar[Positions] = "original"
    #: Whether it reads attention of the previous layer, whose queries and keys must be recorded.
    needs_previous_attention: ClassVar[bool] = False
    #: First layer before or in which it can act.
    first_layer: ClassVar[int] = 1
    #: Whether generation with a cache gives the same text as without one.
    exact_cache: ClassVar[bool] = True

    @abstractmethod
    def layers(self, num_layers: int) -> tuple[int, ...]:
        """The layers before which it acts in a language model of `num_layers`, where a plan names none (no `@`)."""

    @abstractmethod
    def select(self, tokens: LayerTokens, count: int) -> Selection:
        """Choose `count` of the tokens of one image, 0 < count < len(tokens).

        Methods whose budget is not "count" may get `count` = 0: their own rule decides.
        """

    def remaining_tokens(self, tokens: int, count: int | None) -> int:
        """How many of `tokens` stay at one layer, where that follows from sizes alone (`static_count`)."""
        return tokens if count is None else min(count, tokens)

    def __call__(self, tokens: LayerTokens, count: int | None) -> Selection:
        """Choose tokens of one image at one layer. Tokens that answer stay, and stay as they are.

        Args:
            tokens: The image.
            count: Tokens that shall stay; None leaves it to the method.

        Raises:
            FoveateError: the method needs a budget and has none, takes none and has one, or has one below 1; the hidden
                states are not finite; or what the method chose is no selection.
        """
        if len(tokens):  # an earlier layer may have left nothing, of which a budget is nothing
            self.check_budget(count)
        if not len(tokens) or (count is not None and count >= len(tokens)):
            return Selection(torch.arange(len(tokens), device=tokens.device))
        answers = tokens.answers.nonzero().flatten()
        if not len(answers):
            return self._checked(tokens, count or 0)
        others = tokens.without_answers()
        if not len(others) or (count is not None and count <= len(answers)):
            return Selection(answers)
        selection = self._checked(others, 0 if count is None else count - len(answers))
        return with_answers(tokens, answers, selection)

    def _checked(self, tokens: LayerTokens, count: int) -> Selection:
        """What the method chooses, if the tokens can be chosen from and the choice is one."""
        check_finite(self.name, [(f"hidden states before layer {tokens.layer}", tokens.features)])
        selection = self.select(tokens, count)
        selection.check(len(tokens), self.name)
        return selection


@dataclass(frozen=True)
class DecoderScorer(DecoderMethod):
    """A method that scores every token of an image and keeps those of the highest scores; of equal ones the first."""

    @abstractmethod
    def score(self, tokens: LayerTokens) -> Tensor:
        """(N,) the higher, the more a token matters."""

    def select(self, tokens: LayerTokens, count: int) -> Selection:
        """See `DecoderMethod.select`."""
        return Selection(topk_indices(self.score(tokens), count))


def with_answers(tokens: LayerTokens, answers: Tensor, chosen: Selection) -> Selection:
    """A selection among the other tokens of an image, joined with the tokens at which an answer is asked for.

    Args:
        tokens: All of the image.
        answers: (a,) indices of the tokens at which an answer is asked for; they stay as they are.
        chosen: Of `tokens.without_answers()`.
    """
    others = (~tokens.answers).nonzero().flatten()
    indices, order = torch.cat([others[chosen.indices], answers]).sort()
    if chosen.features is None and chosen.assignment is None:
        return Selection(indices)
    row = torch.empty_like(order)
    row[order] = torch.arange(len(order), device=order.device)
    members = chosen.members(len(others))
    assignment = torch.full((len(tokens),), -1, dtype=torch.int64, device=order.device)
    assignment[others] = torch.where(members < 0, -1, row[members.clamp(min=0)])
    assignment[answers] = row[len(chosen) :]
    weights = features = remade = positions = None
    if chosen.positions is not None:
        answer_positions = answers[:, None].expand(-1, chosen.positions.shape[1])
        positions = torch.cat([others[chosen.positions], answer_positions])[order]
    if chosen.weights is not None:
        weights = torch.ones(len(tokens), dtype=chosen.weights.dtype, device=order.device)
        weights[others] = chosen.weights
    if chosen.features is not None:
        features = torch.cat([chosen.features, tokens.features[answers]])[order]
    if again := chosen.remade:
        remade = lambda x: torch.cat([again(x[others]), x[answers]])[order]  # noqa: E731
    return Selection(indices, features, assignment, weights, positions, remade)
