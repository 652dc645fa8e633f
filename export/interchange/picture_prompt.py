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
from tinyllava_edge.prompt import Template

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
    before, _ = around_picture(template)
    if not tower.drop_first or tower.architecture != "siglip_vision_model":
        return PicturePrompt(before=before, row_id=None)
    tokenizer = assets.text_tokenizer()
    ids = tokenizer.encode_text(template.system + before)
    for end in range(len(before) - 1, -1, -1):
        if tokenizer.encode_text(template.system + before[:end]) == ids[:-1]:
            return PicturePrompt(before=before[:end], row_id=ids[-1])
    return PicturePrompt(before=before, row_id=None)


def around_picture(template: Template) -> tuple[str, str]:
    """What a question has in front of its picture, and between it and the words."""
    left, right = template.picture.split(IMAGE_MARKER)
    if template.has_place:
        before, behind = template.question.split("{picture}")
        return before + left, right + behind.split("{question}")[0]
    return template.question.split("{question}")[0] + left, f"{right}\n"


def chat_template(template: Template, before_picture: str) -> str:
    """The template as Jinja, for llama.cpp's own programs; ours never read it.

    Args:
        template: of the checkpoint.
        before_picture: text in front of a question's only picture; with several they stay where they are.
    """
    text = _texts(
        template,
        before_picture=before_picture,
        behind_picture=around_picture(template)[1],
        marker=_MARKER,
        end=_MARKER_END,
    )
    asked = (
        f"{{% set parts = message['content'].split({text['marker']}) %}}"
        "{% if parts|length == 2 %}"
        f"{{% set tail = parts[1].split({text['end']}) %}}"
        f"{{% set words = (parts[0] + tail[1:]|join({text['end']}))|trim %}}"
        f"{{{{ {text['before_picture']} + {text['marker']} + tail[0] + {text['end']} }}}}"
        f"{{% if words %}}{{{{ {text['behind_picture']} + words }}}}{{% endif %}}"
        f"{{% else %}}{{{{ {text['before']} + message['content'] }}}}{{% endif %}}"
    )
    return _jinja(template, text, asked, "message['content']", "messages[0]['content']")


def processor_template(template: Template, behind_picture: str) -> str:
    """The template as Jinja for transformers' processors: `<image>` and `behind_picture`, then a question."""
    marker = around_picture(template)[0] + IMAGE_MARKER + behind_picture
    text = _texts(template, marker=marker)
    words = (
        "{% macro words(content) %}{% if content is string %}{{ content }}{% else %}"
        "{% for part in content if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
        "{% endmacro %}"
    )
    asked = (
        "{% set pictures = [] if message['content'] is string else "
        "message['content']|selectattr('type', 'equalto', 'image')|list %}"
        f"{{{{ {text['marker']} if pictures else {text['before']} }}}}{{{{ words(message['content']) }}}}"
    )
    return words + _jinja(template, text, asked, "words(message['content'])", "words(messages[0]['content'])")


def _texts(template: Template, **more: str) -> dict[str, str]:
    before, after = template.question.replace("{picture}", "").split("{question}")
    answer_before, answer_after = template.answer.split("{answer}")
    system_before, system_after = template.frame or ("", " ")
    texts = {
        "system_before": system_before,
        "system_after": system_after,
        "between": template.between,
        "system": template.system,
        "before": before,
        "after": after,
        "answer_before": answer_before,
        "answer_after": answer_after + template.end,
        **more,
    }
    return {name: json.dumps(value) for name, value in texts.items()}


def _jinja(template: Template, text: dict[str, str], asked: str, answer: str, system: str) -> str:
    """The turns, with `asked` in the place of a question."""
    between = f"{{% if not loop.last %}}{{{{ {text['between']} }}}}{{% endif %}}" if template.between else ""
    head = (
        "{% if messages and messages[0]['role'] == 'system' %}"
        f"{{{{ {text['system_before']} + {system} + {text['system_after']} }}}}"
        f"{{% else %}}{{{{ {text['system']} }}}}{{% endif %}}"
    )
    return (
        f"{'' if template.has_place else head}"
        f"{{% for message in messages %}}{{% if message['role'] == 'user' %}}{asked}"
        "{% elif message['role'] == 'assistant' %}"
        f"{{{{ {text['after']} + {text['answer_before']} + {answer} + {text['answer_after']} }}}}"
        f"{between}"
        "{% endif %}{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ {text['after']} }}}}{{% endif %}}"
    )


def modelfile(template: Template, prompt: PicturePrompt, language: str, mmproj: str) -> str:
    """Ollama's Modelfile for a bundle's language model and mmproj file, both by their names in the bundle.

    Ollama puts `[img-0]` in front of the question; Go's templates cut a text, so a line feed goes between.
    """
    before, after = template.question.replace("{picture}", "").split("{question}")
    behind = around_picture(template)[1]
    size = len(_OLLAMA_MARKER)
    has_picture = f'and (ge (len .Prompt) {size}) (eq (slice .Prompt 0 5) "{_OLLAMA_MARKER[:5]}")'
    return (
        f"FROM ./{language}\n"
        f"FROM ./{mmproj}\n"
        f'SYSTEM """{template.system.rstrip()}"""\n'
        'TEMPLATE """{{ if .System }}{{ .System }} {{ end }}{{ if .Prompt }}'
        f"{{{{ if {has_picture} }}}}{prompt.before}{{{{ slice .Prompt 0 {size} }}}}{behind}"
        f"{{{{ slice .Prompt {size} }}}}{{{{ else }}}}{before}{{{{ .Prompt }}}}{{{{ end }}}}"
        f'{after}{{{{ end }}}}{{{{ .Response }}}}{template.end}"""\n'
        f'PARAMETER stop "{template.end}"\n'
        "PARAMETER temperature 0\n"
        "PARAMETER repeat_penalty 1\n"
    )
