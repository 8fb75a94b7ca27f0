"""Chat templates built like those of the model families, and tokenizers of both kinds to write them with."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from foveate.models.llava_uhd import byte_tokenizer

IMAGE = "<image>"


def _parts(image: str = IMAGE) -> str:
    """What a message says: a string, or parts in their order."""
    each = f"{{% if p['type'] == 'image' %}}{image}{{% else %}}{{{{ p['text'] }}}}{{% endif %}}"
    loop = f"{{% for p in m['content'] %}}{each}{{% endfor %}}"
    return f"{{% if m['content'] is string %}}{{{{ m['content'] }}}}{{% else %}}{loop}{{% endif %}}"


def _turns(before: str, after: str, prompt: str, image: str = IMAGE, first: str = "") -> str:
    """Turns that look the same for both roles; `{role}` stands for the name of one."""
    role = "{{ 'model' if m['role'] == 'assistant' and MODEL else m['role'] }}"
    start, end = before.replace("{role}", role), after
    body = f"{{% for m in messages %}}{start}{_parts(image)}{end}{{% endfor %}}"
    return first + body + "{% if add_generation_prompt %}" + prompt + "{% endif %}"


@dataclass(frozen=True)
class Chat:
    """A template with its special tokens.

    Args:
        template: In Jinja.
        special: Tokens that are one id each, besides the image's.
        expands: What a processor makes of the image's token, with `{}` where image tokens go.
        plain: Whether the vocabulary marks blanks as SentencePiece does (and not as bytes).
    """

    template: str
    special: tuple[str, ...] = ()
    expands: str = "{}"
    plain: bool = False


_SYSTEM = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
_CHATML = ("<|im_start|>", "<|im_end|>")

CHATS: dict[str, Chat] = {
    "qwen": Chat(
        _turns(
            "<|im_start|>{role}\n",
            "<|im_end|>\n",
            "<|im_start|>assistant\n",
            "<|vision_start|><image><|vision_end|>",
            _SYSTEM,
        ),
        (*_CHATML, "<|vision_start|>", "<|vision_end|>"),
    ),
    "qwen thinking": Chat(
        _turns("<|im_start|>{role}\n", "<|im_end|>\n", "<|im_start|>assistant\n<think>\n"), (*_CHATML, "<think>")
    ),
    "internvl": Chat(
        _turns("<|im_start|>{role}\n", "<|im_end|>\n", "<|im_start|>assistant\n", "<image>\n"),
        (*_CHATML, "<img>", "</img>"),
        "<img>{}</img>",
    ),
    "minicpm-v": Chat(
        _turns("<|im_start|>{role}\n", "<|im_end|>\n", "<|im_start|>assistant\n", "<image>\n"),
        (*_CHATML, "<image_id>", "</image_id>", "<slice>", "</slice>"),
        "<image_id>0</image_id><slice>{}</slice>\n<slice>{}</slice>",
    ),
    "gemma": Chat(
        _turns(
            "<start_of_turn>{role}\n",
            "<end_of_turn>\n",
            "<start_of_turn>model\n",
            first="{{ bos_token }}{% set MODEL = true %}",
        ),
        ("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>"),
        "\n\n<start_of_image>{}<end_of_image>\n\n",
    ),
    "smolvlm": Chat(
        "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}: "
        + _parts()
        + "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}",
        ("<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<row_1_col_1>", "<global-img>"),
        "<fake_token_around_image><row_1_col_1>{}\n\n<fake_token_around_image><global-img>{}<fake_token_around_image>",
    ),
    "llama 3": Chat(
        _turns(
            "<|start_header_id|>{role}<|end_header_id|>\n\n",
            "<|eot_id|>",
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            first="{{ bos_token }}",
        ),
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    "mistral": Chat(
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST]"
        + _parts()
        + "[/INST]{% else %}"
        + _parts()
        + "{{ eos_token }}{% endif %}{% endfor %}",
        ("[INST]", "[/INST]", "[IMG_BREAK]", "[IMG_END]"),
        "{}[IMG_BREAK]{}[IMG_END]",
    ),
    "vicuna": Chat(
        "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
        "{% if m['content'] is not string %}{% for p in m['content'] if p['type'] == 'image' %}<image>\n{% endfor %}"
        "{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] + ' ' }}{% endfor %}"
        "{% else %}{{ m['content'] + ' ' }}{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}",
        plain=True,
    ),
    "llama 2": Chat(
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' }}"
        + _parts("<image>\n")
        + "{{ ' [/INST]' }}{% else %} "
        + _parts()
        + "{{ ' ' + eos_token }}{% endif %}{% endfor %}",
        plain=True,
    ),
    "glm": Chat(
        "[gMASK]<sop>{% for m in messages %}<|{{ m['role'] }}|>\n"
        + _parts("<|begin_of_image|><image><|end_of_image|>")
        + "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|begin_of_image|>", "<|end_of_image|>"),
    ),
    "kimi": Chat(
        "{% for m in messages %}<|im_{{ m['role'] }}|>{{ m['role'] }}<|im_middle|>"
        + _parts("<|media_begin|>image<|media_content|><image><|media_end|>\n")
        + "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}",
        (
            "<|im_user|>",
            "<|im_assistant|>",
            "<|im_middle|>",
            "<|im_end|>",
            "<|media_begin|>",
            "<|media_content|>",
            "<|media_end|>",
        ),
    ),
}


def tokenizer_of(chat: Chat) -> PreTrainedTokenizerFast:
    """A tokenizer that knows a template's special tokens and no words: of bytes, or of characters."""
    special = ["<s>", "</s>", *chat.special]
    if not chat.plain:
        found = byte_tokenizer()
        found.add_special_tokens({"additional_special_tokens": special, "bos_token": "<s>"})
    else:
        characters = "▁" + "".join(chr(n) for n in range(33, 127))
        vocabulary = {piece: n for n, piece in enumerate(["<unk>", "<0x0A>", *characters, "▁the", "▁A", "US", "ER"])}
        merges = [("▁", "A"), ("U", "S"), ("E", "R")]
        core = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        core.decoder = decoders.ByteFallback()
        core.pre_tokenizer = pre_tokenizers.Sequence([])
        core.add_special_tokens([*special, IMAGE])
        found = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    found.chat_template = chat.template
    return found
