"""`compress`: attach a plan to a live model, and restore the model.

Four functions of a model are wrapped, each as an attribute of the instance, so that deleting it restores the model:
the forward of the outer model (labels), that of the core (positions of image tokens), that of the language model
(here the sequence is pruned), and the functions that encode images (layouts and probes).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn

from foveate import compat
from foveate.core import sequence
from foveate.core.connector import RasterMethod
from foveate.core.errors import FoveateError, Refusal
from foveate.core.in_encoder import EncoderMethod
from foveate.core.plan import Plan
from foveate.core.tokens import EncoderSpec
from foveate.families import Family, family_of
from foveate.kv_cache.nbytes import bytes_of
from foveate.runtime import task_heads
from foveate.runtime.assisted_decoding import DraftsAfterPrompt
from foveate.runtime.attention_functions import prepare_attention
from foveate.runtime.attention_masks import FLASH_ARGUMENTS
from foveate.runtime.decoder_hooks import DecoderHooks
from foveate.runtime.encoding import EncodedImages, ImageEncoder
from foveate.runtime.llm_input import LLMInputHook
from foveate.runtime.model_call import ModelCall, bind_arguments
from foveate.runtime.patches import NotCopyable, Patches
from foveate.runtime.probe import Probe
from foveate.runtime.question_tokens import QuestionFinder
from foveate.runtime.raster_features import ProjectorInput
from foveate.runtime.report import Report, ReportLog
from foveate.runtime.requirements import check_budgets, check_sites, needs_of
from foveate.runtime.select_tokens import MODALITIES, ForwardContext, TokenSelector
from foveate.runtime.vision_merging import Merging, build_merging

#: Attribute of a core that holds the attached handle.
_HANDLE = "_foveate_handle"
_lock = threading.Lock()


def compress(
    model: Any,
    plan: Any,
    budget: Any = None,
    *,
    positions: Literal["original", "contiguous"] | None = None,
    text_features: Tensor | None = None,
    processor: Any = None,
    align_logits: bool = False,
) -> Handle:
    """Attach a plan to a live model, so that it reads fewer visual tokens until the handle is restored.

        with foveate.compress(model, "divprune:25%") as handle:
            model.generate(**inputs)
        print(handle.report())

    Args:
        model: A model of `transformers` of a known family (`foveate.families.families()`), also without its
            output layer (`AutoModel`), with a head for classification or retrieval (ColPali, ColQwen2), wrapped by PEFT
            or in a pipeline. Nothing is copied. Hidden states, logits and token embeddings are those of the kept
            tokens.
        plan: Text such as `"divprune:64"` or `"hiprune(alpha=0.1):25%"`, a `Plan`, or a method object.
        budget: Budget for a one-step plan without one, such as `"divprune"` or a method object: tokens (int), a
            fraction (float) or text ("25%").
        positions: Position ids of kept tokens: "original" keeps those of the full sequence, "contiguous" closes the
            gaps. Default: as in the method's paper. Models with M-RoPE keep the original ones and refuse "contiguous",
            except under methods that map the features to a smaller raster, whose positions are "contiguous" ones.
        text_features: (prompts, d) or (d,), embeddings of the prompts in the space of the encoder's [CLS] token, for
            methods that compare images with a contrastive text encoder.
        processor: The model's processor or tokenizer, for question-aware methods: it separates the user's words from
            the text of the chat template. Default: the tokenizer next to the model's local weights; without one the
            question is located by special ids alone, and the report says so.
        align_logits: Return logits, and hidden states where they are requested, for all columns of the input sequence,
            for code that pairs them with labels outside of the model: metrics, label smoothing, preference training. A
            removed column holds the values of the last kept column before it, which now precedes the next one (zeros
            where there is none), so that a loss over labels that are -100 at images is
            that of the pruned sequence.

    Returns:
        The handle: a context manager with `report()` and `restore()`. Outputs of the model have two more fields:
        `kept_positions` (B, P), columns of the input sequence, -1 for left padding; and `labels` (B, P), where labels
        were given. With `align_logits` all columns are returned, and these two are None.

    Raises:
        FoveateError: the plan cannot be parsed, the model is of no known family or lacks what a method needs, or
            something is attached already.

    Warns:
        UserWarning: once per process, if foveate is not tested with this version of transformers.
    """
    compat.warn_if_untested()
    return Handle(_unwrapped(model), Plan.of(plan, budget), positions, text_features, processor, align_logits)


def handle_of(model: Any) -> Handle | None:
    """The handle of the plan attached to a model; None where none is."""
    model = _unwrapped(model)
    try:
        core = family_of(model).core(model)
    except FoveateError:  # no known family: nothing can be attached
        return None
    return vars(core).get(_HANDLE)


def _unwrapped(model: Any) -> nn.Module:
    """The model of `transformers` inside a pipeline, a PEFT model or a compiled module."""
    if not isinstance(model, nn.Module) and isinstance(getattr(model, "model", None), nn.Module):
        model = model.model
    while True:
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        else:
            break
    if not isinstance(model, nn.Module):
        raise FoveateError(f"a model of transformers can be compressed, not a {type(model).__name__}.")
    return model


def _with_weights(plan: Plan, model: nn.Module) -> Plan:
    """The plan, with the weights of trained methods resolved next to the model's."""
    location = getattr(model, "name_or_path", "")
    return Plan(tuple(replace(step, method=step.method.resolve_weights(location)) for step in plan.steps))


def _only(module: nn.Module, called: nn.Module, args: Any) -> None:
    """Pre-forward hook that refuses replicas of a module, whose `forward` would run on the original's weights."""
    if called is not module:
        raise FoveateError(
            f"this {type(called).__name__} is a replica (as of DataParallel) of one that foveate is attached to, and "
            "would run with the weights of the original; use one process per device."
        )


class Handle(NotCopyable):
    """Handle of a plan attached to a model, made by `compress`; a context manager that restores the model on exit."""

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        positions: str | None,
        text_features: Tensor | None,
        processor: Any = None,
        align_logits: bool = False,
    ) -> None:
        if not plan.steps:
            raise FoveateError("a plan is empty; write one such as 'divprune:64'.")
        self.model = model
        self.align_logits = align_logits
        self.plan = plan = _with_weights(plan, model)
        self.family: Family = family_of(model)
        self._core: Any = self.family.core(model)
        self._has_task_head = task_heads.has_task_head(model, self._core)
        self._report_log = ReportLog()
        self._local = threading.local()
        self._patches = Patches()
        if positions not in (None, "original", "contiguous"):
            raise FoveateError(f"positions are 'original' or 'contiguous', not {positions!r}.")
        if positions == "contiguous" and self._keeps_positions:
            raise FoveateError(
                "positions='contiguous' cannot be followed in this model, whose tokens have positions in time, height "
                "and width (M-RoPE): leave it out, and kept tokens have their original ones."
            )
        own_compression = getattr(self._core, "own_compression", None)
        if own_compression is not None:
            raise FoveateError(
                Refusal(
                    "needs-uncompressed-encoder", f"this model {own_compression}, and '{plan}' cannot be attached to it"
                )
            )
        if text_features is not None and not (
            isinstance(text_features, Tensor) and text_features.ndim in (1, 2) and text_features.numel()
        ):
            given = tuple(text_features.shape) if isinstance(text_features, Tensor) else type(text_features).__name__
            raise FoveateError(f"text_features are a tensor of (prompts, d) or (d,), not {given}.")
        check_budgets(plan)
        check_sites(plan, self.family)
        self.family.check(self._core, plan)
        self.tower: EncoderSpec = self.family.tower(self._core)
        self._needs, notes = needs_of(plan, self.family, self.tower, text_features is not None)
        source = getattr(model, "name_or_path", "") if processor is None else processor
        question_finder = QuestionFinder(model.config, getattr(model, "generation_config", None), source)
        self._selector = TokenSelector(
            self.family, self._core, plan, self.tower, self._needs, notes, text_features, question_finder
        )
        early = plan.early_steps
        contiguous = bool(early) and (positions or early[-1].method.positions) == "contiguous"
        virtual = bool(getattr(plan.steps[0].method, "virtual", False))
        self._decoder_hooks: DecoderHooks | None = None
        if plan.decoder_steps:
            inner = None if positions is None else positions == "contiguous"
            self._decoder_hooks = DecoderHooks(self.family.text(self._core), plan, inner, self.tower)
        self._llm_input = LLMInputHook(self.family, self._core, plan, contiguous, virtual, self._decoder_hooks)
        with _lock:
            other = vars(self._core).get(_HANDLE)
            if other is not None:
                raise FoveateError(
                    Refusal(
                        "attached-already",
                        f"the plan '{other.plan}' is attached to this model already",
                        "restore it first, or join both plans with +",
                    )
                )
            self._patches.set(self._core, _HANDLE, self)
        try:
            self._attach()
        except BaseException:
            self.restore()
            raise

    @property
    def _keeps_positions(self) -> bool:
        """Whether the model has M-RoPE, and the plan no smaller raster."""
        smaller = any(isinstance(step.method, RasterMethod) for step in self.plan.steps)
        return hasattr(self._core, "get_rope_index") and not smaller

    # Public methods

    def report(self, everything: bool = False) -> Report:
        """Report on the images of this thread's last call; it has none if the call read text alone.

        Passes that continue from a cache, as `generate` makes for every new token, are part of the call that began it,
        unless they bring new images.

        Args:
            everything: Report all stored images, of all threads; their selections have no features of merged tokens.
        """
        images = self._report_log.all() if everything else self._report_log.last()
        return Report(str(self.plan), images, self._report_log.kv_bytes)

    @property
    def columns(self) -> Tensor | None:
        """(B, P) output columns of the language model in this thread's last pass; None: all."""
        return getattr(self._local, "columns", None)

    @contextmanager
    def with_labels(self, labels: Tensor) -> Generator[Callable[[], Tensor]]:
        """Give this thread's passes their labels, which show where answers begin, while the context is open.

        For code that calls the core and computes the loss itself; a model that is called with `labels` does not need
        it.

        Args:
            labels: (B, L), -100 for ignored positions.

        Yields:
            A function that returns, after the pass, the labels of the output: (B, P) of the pruned sequence, (B, L)
            with `align_logits`.
        """
        previous = getattr(self._local, "query_mask", None), getattr(self._local, "answer_mask", None)
        self._local.columns = self._local.sample_ids = None
        self._local.query_mask = sequence.before_answers(labels)
        self._local.answer_mask = labels != -100

        def kept_labels() -> Tensor:
            columns = self._local.columns
            if columns is None:
                return labels
            shorten = sequence.labels_that_count if self.align_logits else sequence.shorten_labels
            return shorten(labels.to(columns.device), columns, self._local.sample_ids)

        try:
            yield kept_labels
        finally:
            self._local.query_mask, self._local.answer_mask = previous

    @contextmanager
    def with_question(self, question: str | list[str] | Tensor) -> Generator[None]:
        """Give this thread's calls their question, for question-aware methods, while the context is open.

            with handle.with_question("What is the total?"):
                model.generate(**inputs)

        Args:
            question: A text in the prompt, one for all prompts or one for each, which is located with the tokenizer; or
                a mask (B, L) over the prompts' tokens, True for the question.
        """
        questions: Any = [question] if isinstance(question, str) else question
        if isinstance(questions, Tensor):
            is_question = questions.ndim == 2 and len(questions) > 0
        else:
            is_question = isinstance(questions, list | tuple) and all(isinstance(text, str) for text in questions)
            is_question = is_question and len(questions) > 0
        if not is_question:
            given = tuple(questions.shape) if isinstance(questions, Tensor) else repr(question)
            raise FoveateError(f"a question is a text, a text for each prompt or a mask (B, L), not {given}.")
        previous = getattr(self._local, "questions", None)
        self._local.questions = questions.bool() if isinstance(questions, Tensor) else list(questions)
        try:
            yield
        finally:
            self._local.questions = previous

    def restore(self) -> None:
        """Restore the model to its original state; a second call changes nothing."""
        with _lock:
            self._patches.undo()

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.restore()

    def __repr__(self) -> str:
        return f"<{self.plan} on {type(self.model).__name__}>"

    # Attaching

    def _attach(self) -> None:
        core, family, patches = self._core, self.family, self._patches
        text: Any = family.text(core)
        blocks = family.blocks(core)
        attentions = [family.attention(block) for block in blocks]
        probe = Probe(attentions, blocks, self._needs, self.tower.has_cls)
        probe.attach(patches)
        projector_input = None
        if isinstance(self.plan.steps[0].method, RasterMethod) and family.raster_features == "before-projector":
            projector_input = ProjectorInput(family.projector(core))
            projector_input.attach(patches)
        self._encoder = ImageEncoder(family, core, self.plan, probe, self._merge(), projector_input)
        if self._has_task_head:
            patches.wrap(self.model, "forward", self._with_task_head)
        elif self.model is not core:
            patches.wrap(self.model, "forward", self._outer)
        if hasattr(self.model, compat.CANDIDATE_GENERATOR):
            patches.wrap(self.model, compat.CANDIDATE_GENERATOR, self._candidates)
        if hasattr(self.model, compat.PREFILL):
            patches.wrap(self.model, compat.PREFILL, self._prefill)
        patches.wrap(core, "forward", self._inner)
        patches.wrap(text, "forward", self._language_model)
        for module in {self.model, core, text}:
            patches.before(module, functools.partial(_only, module), prepend=True)
        self._llm_input.attach(patches)
        if self._decoder_hooks is not None:
            self._decoder_hooks.attach(patches)
        if any(need.kind == "first_layer_attention" for need in self._needs):
            prepare_attention(patches, text.layers[0].self_attn)
        for modality in MODALITIES:
            name = f"get_{modality}_features"
            if hasattr(core, name):
                patches.wrap(core, name, functools.partial(self._encode, modality))

    def _merge(self) -> Merging | None:
        """Attach the merging of the plan's encoder step, if it has one."""
        step = self.plan.steps[0]
        if not isinstance(step.method, EncoderMethod):
            return None
        active = build_merging(
            self.family.vision_tower(self._core),
            step.method,
            None if step.budget is None else step.budget.of,
            output_layer=self.tower.last_used,
            cls=self.tower.has_cls,
        )
        active.attach(self._patches)
        return active

    def _candidates(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> DraftsAfterPrompt:
        """Wrap the candidate generator of `generate`."""
        return DraftsAfterPrompt(original(*args, **kwargs), compat.cache_in(kwargs["model_kwargs"]))

    def _prefill(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Wrap the method of `generate` that reads the prompt, and note whether it reads it in chunks."""
        call = bind_arguments(original, args, kwargs)
        ids, model_kwargs = call["input_ids"], call["model_kwargs"]
        cache, mask = compat.cache_in(model_kwargs), model_kwargs.get("attention_mask")
        # Of a conversation that goes on, the ids are those of all of it, or of what is new.
        has_all = cache is not None and isinstance(mask, Tensor) and mask.shape[1] == ids.shape[1]
        count = ids.shape[1] - (int(cache.get_seq_length()) if has_all else 0)
        size = getattr(call["generation_config"], "prefill_chunk_size", None)
        # `generate` has encoded the images where it can.
        visual = [value for name, value in model_kwargs.items() if name.startswith(("pixel_values", "mm_encoder"))]
        if size is not None and not compat.CHUNKS_READ_IMAGES and any(value is not None for value in visual):
            raise FoveateError(
                "with prefill_chunk_size, `generate` of transformers before 5.23 leaves out images and "
                "videos; leave it out, or install transformers 5.23 or newer."
            )
        previous, self._local.chunked = self._is_chunked, size is not None and size < count
        try:
            return original(*args, **kwargs)
        finally:
            self._local.chunked = previous

    @property
    def _is_chunked(self) -> bool:
        """Whether `generate` reads a prompt in chunks in this thread."""
        return getattr(self._local, "chunked", False)

    def _check_not_chunked(self) -> None:
        """Raise FoveateError where a chunk of a prompt is read with its images and the plan reads the whole prompt."""
        from_prompt = any(need.kind in ("instruction", "first_layer_attention") for need in self._needs)
        if self._is_chunked and (from_prompt or self.plan.decoder_steps):
            raise FoveateError(
                f"'{self.plan}' needs the whole prompt in one pass, and prefill_chunk_size divides it; leave it out."
            )

    # Encoding

    def _encode(self, modality: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # Flash attention's sample boundaries are those of the text, not of the images.
        kwargs = {name: value for name, value in kwargs.items() if name not in (*FLASH_ARGUMENTS, "seq_idx")}
        if getattr(self._local, "encoding", False):
            return original(*args, **kwargs)  # some models encode videos with their function for images
        self._local.encoding = True
        try:
            output, encoded = self._encoder.encode(modality, original, *args, **kwargs)
        finally:
            self._local.encoding = False
        context = self._context
        if encoded is not None and context is not None:
            context.encoded[modality] = encoded
        elif encoded is not None:  # `generate` encodes before the first forward pass and passes the output on
            output.foveate_encoded = encoded
            self._pending[modality] = encoded
        return output

    @property
    def _pending(self) -> dict[str, EncodedImages]:
        """Images that this thread encoded outside of a forward pass, by modality."""
        if not hasattr(self._local, "pending"):
            self._local.pending = {}
        return self._local.pending

    @property
    def _context(self) -> ForwardContext | None:
        return getattr(self._local, "context", None)

    @contextmanager
    def _in_context(self, context: ForwardContext) -> Generator[None]:
        previous = self._context
        self._local.context = context
        try:
            yield
        finally:
            self._local.context = previous

    # Forward passes

    def _outer(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        kwargs = bind_arguments(original, args, kwargs)
        model: Any = self.model
        call = ModelCall(self.align_logits, kwargs, model.config, getattr(model, "_hf_hook", None))
        labels = call.labels_by_token()
        previous, self._local.call = getattr(self._local, "call", None), call
        try:
            with nullcontext() if labels is None else self.with_labels(labels):
                output = original(**call.arguments)
        finally:
            self._local.call = previous
        return call.finalize(output)

    def _with_task_head(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Forward of a model with a head for retrieval or classification."""
        call = bind_arguments(original, args, kwargs)
        self._local.columns = self._local.read = None
        if type(self.model).__name__ == "ColQwen2ForRetrieval" and call.get("pixel_values") is not None:
            ids = call["input_ids"]
            call, images = task_heads.embed_images(self._core, call)
            self._local.read = {"input_ids": ids, "mm_encoder_outputs": {"image": images}}
        try:
            output = original(**call)
        finally:
            self._local.read = None
        columns = self._local.columns
        if columns is not None and getattr(output, "embeddings", None) is not None:
            output.embeddings = task_heads.select_embeddings(output.embeddings, columns)
        return output

    def _inner(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        kwargs = bind_arguments(original, args, kwargs)
        call: ModelCall | None = getattr(self._local, "call", None)
        if call is not None:
            with self._in_call(call, kwargs) as core_arguments:
                return self._core_pass(original, core_arguments)
        # The core was called directly: its output is returned.
        align = self.align_logits and not self._has_task_head  # task heads get all columns below
        call = ModelCall(align, kwargs, self._core.config, getattr(self._core, "_hf_hook", None))
        self._local.call = call
        try:
            with self._in_call(call, call.arguments) as core_arguments:
                output = self._core_pass(original, core_arguments)
        finally:
            self._local.call = None
        return call.finalize(output)

    @contextmanager
    def _in_call(self, call: ModelCall, kwargs: dict[str, Any]) -> Generator[dict[str, Any]]:
        """Yield the arguments of the core; deferred arguments are filled in after it has run."""
        call.read, self._local.columns = None, None
        yield call.core_arguments(kwargs)
        call.fill_deferred()

    def _core_pass(self, original: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        # A model that encodes images itself passes embeddings to its core; their layouts must be known.
        context = ForwardContext({**kwargs, **(getattr(self._local, "read", None) or {})})
        for modality, output in (context.arguments.get("mm_encoder_outputs") or {}).items():
            if output is None or modality not in MODALITIES:
                continue
            encoded = getattr(output, "foveate_encoded", None)
            if encoded is None and (pending := self._pending.get(modality)) is not None and pending.matches(output):
                # Hooks that move arguments to a device make new outputs without our attribute.
                encoded = pending
            if encoded is None or encoded.encoder_id != self._encoder.encoder_id:
                if self._is_chunked:
                    raise FoveateError(
                        f"under '{self.plan}' the {modality}s of a prompt are read in one pass, and prefill_chunk_size "
                        "divides them; give a greater one, or leave it out."
                    )
                raise FoveateError(
                    f"the {modality}s were encoded by another model, or before '{self.plan}' was attached; encode them "
                    "again."
                )
            context.encoded[modality] = encoded
        with self._in_context(context):
            output = original(**kwargs)
        columns = self._local.columns
        if self._has_task_head and columns is not None:
            length = context.length
            if isinstance(output, tuple):
                return (task_heads.expand_hidden(output[0], columns, length), *output[1:])
            output.last_hidden_state = task_heads.expand_hidden(output.last_hidden_state, columns, length)
        return output

    def _language_model(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        context = self._context
        if context is None:
            return original(*args, **kwargs)
        kwargs = bind_arguments(original, args, kwargs)
        embeds = kwargs.get("inputs_embeds")
        if embeds is None:
            if context.encoded:
                raise FoveateError(
                    f"{type(self._core).__name__} calls its language model without inputs_embeds; '{self.plan}' needs "
                    "them: pass images together with input_ids."
                )
            return original(**kwargs)
        context.positions, context.length = kwargs.get("position_ids"), embeds.shape[1]
        context.query_mask = getattr(self._local, "query_mask", None)
        context.answer_mask = getattr(self._local, "answer_mask", None)
        context.questions = getattr(self._local, "questions", None)
        if context.encoded:
            self._check_not_chunked()
            context.masks = self._llm_input.sequence_masks(context, kwargs)
            if context.masks.sample_ids is not None and context.query_mask is not None:
                context.query_mask = sequence.within_samples(context.query_mask, context.masks.sample_ids)
        selections, reports = self._selector.select_batch(context, embeds)
        cache = compat.cache_in(kwargs)
        starts_text = cache is None or int(cache.get_seq_length()) == 0  # and does not go on with what a cache holds
        output, read, reports = self._llm_input.forward(original, context, selections, reports, kwargs)
        self._local.columns = None if read is None else read.columns
        self._local.sample_ids = None if read is None else read.sample_ids
        if reports or starts_text:
            self._report_log.write(reports, bytes_of(compat.cache_of(output)))
        call: ModelCall | None = getattr(self._local, "call", None)
        return output if call is None else call.expand_text_output(output, read)
