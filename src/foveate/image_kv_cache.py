"""KV cache of one image, reused for many questions, for models with VoCo tokens."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import DynamicCache

from foveate import compat
from foveate.answering.conversations import as_plain_text, check_length, check_new_tokens, greedy, processed
from foveate.core.errors import FoveateError
from foveate.images import open_image
from foveate.kv_cache.nbytes import bytes_of


class ImageMemory:
    """KV cache of one image in a model with VoCo tokens: keys and values of a few tokens.

        memory = ImageMemory(model, processor, "sign.png")
        memory.ask("Which date?")
        memory.ask("Which colour?")

    The image passes the vision encoder and the language model once. Every question continues from a copy of the same
    cache, from which the image's own keys and values are gone, and gets the answer that it would get alone.

    Args:
        model: A LLaVA-UHD trained with VoCo tokens (`model.voco` in a recipe), as `foveate.load` returns it.
        processor: Its processor.
        image: A path, bytes, a PIL image or an array.

    Raises:
        FoveateError: the model has no VoCo tokens, or the image cannot be read.
    """

    def __init__(self, model: Any, processor: Any, image: Any) -> None:
        if not getattr(model.config, "num_voco_tokens", 0):
            raise FoveateError(
                "this model has no VoCo tokens to remember an image by; train one with `voco` in a recipe's model."
            )
        if model.model.reads_prompts:
            raise FoveateError(
                f"the connector {model.config.connector_type} of this model reads the question, so that the image "
                "cannot be kept for another one: ask with the image each time."
            )
        self.model = model
        self.processor = processor
        first = self._prompt("?").split(processor.image_token)[0]
        text = first + processor.image_token
        inputs = processed(processor, images=open_image(image), text=text, return_tensors="pt")
        inputs = inputs.to(model.device, dtype=model.dtype)
        self.cache: Any = DynamicCache(config=model.config.get_text_config())
        with torch.inference_mode():
            model(**inputs, **compat.cache_argument(self.cache), use_cache=True)
        self._ids = inputs["input_ids"]

    def _prompt(self, question: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    @property
    def tokens(self) -> int:
        """Number of tokens of the conversation so far, with those of the image."""
        return self._ids.shape[1]

    @property
    def lengths(self) -> list[int]:
        """Number of cache entries in every layer of the language model."""
        return [layer.keys.shape[2] for layer in self.cache.layers]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return bytes_of(self.cache) or 0

    @torch.inference_mode()
    def ask(self, question: str, max_new_tokens: int = 128) -> str:
        """Answer a question about the image with greedy decoding; earlier questions are not part of the context.

        Raises:
            FoveateError: the question is empty or too long.
        """
        if not isinstance(question, str) or not question.strip():
            raise FoveateError("the question is empty; ask something about the image.")
        check_new_tokens(max_new_tokens)
        tokenizer = self.processor.tokenizer
        text = self._prompt(as_plain_text(question.strip(), tokenizer)).split(self.processor.image_token)[1]
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"].to(self._ids)
        ids = torch.cat([self._ids, ids], dim=1)
        check_length(self.model, ids.shape[1], max_new_tokens)
        written = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **compat.cache_argument(copy.deepcopy(self.cache)),
            generation_config=greedy(self.model, max_new_tokens),
        )
        return tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True).strip()
