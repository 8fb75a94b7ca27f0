"""The chat format: ChatML turns, with one `<image>` placeholder for each image."""

IMAGE_TOKEN = "<image>"

# A message's content is a string (which may hold placeholders itself, as in LLaVA's training data) or a list
# of parts of type "image" and "text". A newline follows each image that is not the last part, as in LLaVA's
# prompts, so that both ways of writing a turn give the same prompt. `generation` marks what the assistant
# says, for trainers that compute the loss on answers only (`return_assistant_tokens_mask`).
CHAT_TEMPLATE = """\
{%- macro render(content) -%}
{%- if content is string -%}
{{- content -}}
{%- else -%}
{%- for part in content -%}
{%- if part['type'] == 'image' -%}
{{- '<image>' -}}
{%- if not loop.last -%}{{- '\\n' -}}{%- endif -%}
{%- elif part['type'] == 'text' -%}
{{- part['text'] -}}
{%- else -%}
{{- raise_exception("This model reads content of type 'image' and 'text', got '" ~ part['type'] ~ "'.") -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{{- '<|im_start|>' ~ message['role'] ~ '\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- render(message['content']) -}}{{- '<|im_end|>' -}}{%- endgeneration -%}
{{- '\\n' -}}
{%- else -%}
{{- render(message['content']) -}}{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

# The same for models that read clips too: `<video>` stands for one, as `<image>` for an image.
CLIP_CHAT_TEMPLATE = CHAT_TEMPLATE.replace(
    "{%- elif part['type'] == 'text' -%}",
    """\
{%- elif part['type'] == 'video' -%}
{{- '<video>' -}}
{%- if not loop.last -%}{{- '\\n' -}}{%- endif -%}
{%- elif part['type'] == 'text' -%}""",
).replace("'image' and 'text'", "'image', 'video' and 'text'")
