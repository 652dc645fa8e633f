"""The text around a picture for programs that are not ours: Jinja in a GGUF file, and Ollama's Modelfile.

Upstream writes `USER: `, the picture, a line feed, the question; llama.cpp's programs put the picture's
marker in front of the question and nothing between. Where the mmproj file gives the last token in front of
the picture itself (`widened.py`), the text stops one token short of it. Markers of both programs:
docs/sources/llamacpp.md#chat-templates and docs/sources/llamacpp.md#ollama.
"""

import json
from dataclasses import dataclass

from tinyllava_edge.checkpoint.config import IMAGE_MARKER, VisionConfig
from tinyllava_edge.model.assets import Assets
from tinyllava_edge.prompt import Template, TextTokenizer

MODELFILE = "Modelfile"
_MARKER = "<__media"  # llama.cpp's is <__media__>, its server's <__media_ and a random text __>
_MARKER_END = "__>"
_OLLAMA_MARKER = "[img-0]"


@dataclass(frozen=True, kw_only=True)
class PicturePrompt:
    """How a template's question begins where it has a picture.

    Attributes:
        before: text in front of the picture.
        row_id: the token whose embedding the mmproj file has in front of the patches, or None.
    """

    before: str
    row_id: int | None


def picture_prompt(assets: Assets, tower: VisionConfig) -> PicturePrompt:
    """Where the text stops, for a tower whose token 0 upstream drops and llama.cpp keeps.

    Where no text gives all ids but the last one, the picture keeps its token 0 and the text is whole.
    """
    template = assets.template
    before = template.question.split("{question}")[0]
    if not tower.drop_first or tower.architecture != "siglip_vision_model":
        return PicturePrompt(before=before, row_id=None)
    tokenizer = assets.text_tokenizer()
    ids = _ids(tokenizer, template.system + before)
    for end in range(len(before) - 1, -1, -1):
        if _ids(tokenizer, template.system + before[:end]) == ids[:-1]:
            return PicturePrompt(before=before[:end], row_id=ids[-1])
    return PicturePrompt(before=before, row_id=None)


def chat_template(template: Template, before_picture: str) -> str:
    """The template as Jinja, for llama.cpp's own programs; ours never read it."""
    before, after = template.question.split("{question}")
    answer_before, answer_after = template.answer.split("{answer}")
    text = {name: json.dumps(value) for name, value in {
        "system": template.system,
        "before": before,
        "before_picture": before_picture,
        "after": after,
        "answer_before": answer_before,
        "answer_after": answer_after + template.end,
        "marker": _MARKER,
        "end": _MARKER_END,
    }.items()}  # fmt: skip
    return (
        "{% if messages and messages[0]['role'] == 'system' %}{{ messages[0]['content'] + ' ' }}"
        f"{{% else %}}{{{{ {text['system']} }}}}{{% endif %}}"
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        f"{{% set parts = message['content'].split({text['marker']}) %}}"
        "{% if parts|length == 2 %}"
        f"{{% set tail = parts[1].split({text['end']}) %}}"
        f"{{% set words = (parts[0] + tail[1:]|join({text['end']}))|trim %}}"
        f"{{{{ {text['before_picture']} + {text['marker']} + tail[0] + {text['end']} }}}}"
        "{% if words %}{{ '\\n' + words }}{% endif %}"
        f"{{% else %}}{{{{ {text['before']} + message['content'] }}}}{{% endif %}}"
        "{% elif message['role'] == 'assistant' %}"
        f"{{{{ {text['after']} + {text['answer_before']} + message['content'] + {text['answer_after']} }}}}"
        "{% endif %}{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ {text['after']} }}}}{{% endif %}}"
    )


def processor_template(template: Template, after_picture: str) -> str:
    """The template as Jinja for transformers' processors: `<image>` and `after_picture`, then a question."""
    before, after = template.question.split("{question}")
    answer_before, answer_after = template.answer.split("{answer}")
    text = {name: json.dumps(value) for name, value in {
        "system": template.system,
        "before": before,
        "after": after,
        "answer_before": answer_before,
        "answer_after": answer_after + template.end,
        "marker": IMAGE_MARKER + after_picture,
    }.items()}  # fmt: skip
    return (
        "{% macro words(content) %}{% if content is string %}{{ content }}{% else %}"
        "{% for part in content if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
        "{% endmacro %}"
        "{% if messages and messages[0]['role'] == 'system' %}{{ words(messages[0]['content']) + ' ' }}"
        f"{{% else %}}{{{{ {text['system']} }}}}{{% endif %}}"
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        "{% set pictures = [] if message['content'] is string else "
        "message['content']|selectattr('type', 'equalto', 'image')|list %}"
        f"{{{{ {text['before']} }}}}{{% for _ in pictures %}}{{{{ {text['marker']} }}}}{{% endfor %}}"
        f"{{{{ words(message['content']) + {text['after']} }}}}"
        "{% elif message['role'] == 'assistant' %}"
        f"{{{{ {text['answer_before']} + words(message['content']) + {text['answer_after']} }}}}"
        "{% endif %}{% endfor %}"
    )


def modelfile(template: Template, prompt: PicturePrompt, language: str, mmproj: str) -> str:
    """Ollama's Modelfile for a bundle's language model and mmproj file, both by their names in the bundle.

    Ollama puts `[img-0]` in front of the question; Go's templates cut a text, so a line feed goes between.
    """
    before, after = template.question.split("{question}")
    size = len(_OLLAMA_MARKER)
    has_picture = f'and (ge (len .Prompt) {size}) (eq (slice .Prompt 0 5) "{_OLLAMA_MARKER[:5]}")'
    return (
        f"FROM ./{language}\n"
        f"FROM ./{mmproj}\n"
        f'SYSTEM """{template.system.rstrip()}"""\n'
        'TEMPLATE """{{ if .System }}{{ .System }} {{ end }}{{ if .Prompt }}'
        f"{{{{ if {has_picture} }}}}{prompt.before}{{{{ slice .Prompt 0 {size} }}}}\n"
        f"{{{{ slice .Prompt {size} }}}}{{{{ else }}}}{before}{{{{ .Prompt }}}}{{{{ end }}}}"
        f'{after}{{{{ end }}}}{{{{ .Response }}}}{template.end}"""\n'
        f'PARAMETER stop "{template.end}"\n'
        "PARAMETER temperature 0\n"
        "PARAMETER repeat_penalty 1\n"
    )


def _ids(tokenizer: TextTokenizer, text: str) -> list[int]:
    return tokenizer.encode_text(text)
