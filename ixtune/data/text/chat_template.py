"""The chat template in transformers' form: Jinja, stored next to a model as `chat_template.jinja`.

It renders the text whose ids `ixtune.data.text.template` computes: of whole conversations those of training, EOS after
a last answer included, and with `add_generation_prompt` those of a prompt. It refuses what the chat template refuses,
and marks by `{% generation %}` what training supervises.
"""

from __future__ import annotations

CHAT_TEMPLATE_FILE = "chat_template.jinja"

CHAT_TEMPLATE = r"""
{#- One turn per message between [UNUSED_TOKEN_146] and [UNUSED_TOKEN_145]; <ImageHere> stands for an image. -#}
{%- macro content_of(message) -%}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content or [] -%}
{%- if part.type in ['image', 'image_url'] -%}
{{- '<ImageHere>' -}}
{%- elif part.text is string -%}
{{- part.text -}}
{%- else -%}
{{- raise_exception('A part of a message is of the type ' ~ part.type ~ ': use text or image.') -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{{- bos_token -}}
{%- for message in messages -%}
{%- set text = content_of(message) | trim -%}
{%- set before = (loop.previtem or {'role': 'system'}).role -%}
{%- if not text -%}
{{- raise_exception('Message ' ~ loop.index ~ ' (' ~ message.role ~ ') is empty.') -}}
{%- endif -%}
{%- for piece in ['<unk>', '<s>', '</s>'] -%}
{%- if piece in text -%}
{{- raise_exception('A message contains ' ~ piece ~ ', which ends or begins something in the template.') -}}
{%- endif -%}
{%- endfor -%}
{%- for digit in '0123456789' -%}
{%- if '[UNUSED_TOKEN_' ~ digit in text -%}
{{- raise_exception('A message contains [UNUSED_TOKEN_' ~ digit ~ ', a piece of the template.') -}}
{%- endif -%}
{%- endfor -%}
{%- if message.role in ['system', 'developer'] -%}
{%- if not loop.first -%}
{{- raise_exception('Message ' ~ loop.index ~ ' is a system prompt: it must be the first.') -}}
{%- endif -%}
{{- '[UNUSED_TOKEN_146]system\n' ~ text ~ '[UNUSED_TOKEN_145]\n' -}}
{%- elif message.role == 'user' -%}
{%- if before == 'user' -%}
{{- raise_exception('Messages ' ~ loop.index0 ~ ' and ' ~ loop.index ~ ' are both of the user: join them.') -}}
{%- endif -%}
{{- '[UNUSED_TOKEN_146]user\n' ~ text ~ '[UNUSED_TOKEN_145]\n' -}}
{%- elif message.role == 'assistant' -%}
{%- if before != 'user' -%}
{{- raise_exception('Message ' ~ loop.index ~ ' is an answer, and no question precedes it.') -}}
{%- endif -%}
{%- set ends = loop.last -%}
{%- if ends and add_generation_prompt -%}
{{- raise_exception('The last message is an answer: no other can follow it.') -}}
{%- endif -%}
{{- '[UNUSED_TOKEN_146]assistant\n' -}}
{%- generation -%}
{{- text ~ '[UNUSED_TOKEN_145]' -}}
{%- if ends -%}
{{- '\n' ~ eos_token -}}
{%- endif -%}
{%- endgeneration -%}
{%- if not ends -%}
{{- '\n' -}}
{%- endif -%}
{%- else -%}
{{- raise_exception('The role of message ' ~ loop.index ~ ' is ' ~ message.role ~ ': use system, user, assistant.') -}}
{%- endif -%}
{%- if message.role != 'user' and '<ImageHere>' in text -%}
{{- raise_exception('Message ' ~ loop.index ~ ' (' ~ message.role ~ ') has an image: only the user shows images.') -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '[UNUSED_TOKEN_146]assistant\n' -}}
{%- endif -%}
""".strip()
