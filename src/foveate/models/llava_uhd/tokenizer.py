"""A byte-level tokenizer that needs no vocabulary: the one of the embedded model."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from foveate.models.llava_uhd.chat_template import CHAT_TEMPLATE, IMAGE_TOKEN

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", IMAGE_TOKEN)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens 0 to 255 are the bytes, followed by four special tokens (256 to 259).

    Any text is encoded and decoded without loss, whatever its script. It pads on the left, ends an answer
    with `<|im_end|>`, and carries the chat template of `foveate`. It is saved and loaded like every tokenizer
    of `transformers` (`save_pretrained`, `AutoTokenizer`).
    """
    vocabulary = {symbol: byte for byte, symbol in enumerate(_byte_symbols())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        extra_special_tokens={"image_token": IMAGE_TOKEN, "turn_token": "<|im_start|>"},
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def _byte_symbols() -> list[str]:
    """The printable character that the byte-level format of GPT-2 writes for each byte.

    Bytes that are printable in Latin-1 stand for themselves; the others follow from U+0100 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]
