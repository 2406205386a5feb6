"""Text of models and people, made safe to show as Markdown."""

from __future__ import annotations

import re

from medical_assistant.prompts import clean_text

_IMAGE = re.compile(r"!(?=\[)")
_MARKUP = re.compile(r"<(?=[A-Za-z/!?|])")
_LINK = re.compile(r"\](?=\((?!https?://))")
_REFERENCE = re.compile(r"(?m)^(\s{0,3}\[[^\]\n]*\])(?=:)")
_DIAGRAM = re.compile(r"```[ \t]*(?=mermaid)", re.IGNORECASE)  # Gradio 6.31 draws it: much script for foreign text


def safe_in_template(text: str) -> str:
    """Return `text` for a value of a `gr.HTML` template, where it reads the same and runs nothing.

    Gradio 6.31 fills a template with Handlebars, which escapes HTML, and evaluates the result as a JavaScript template
    literal: there `${`, a backslash and a backtick are code.
    """
    return text.replace("\\", "\uff3c").replace("`", "\u02cb").replace("$", "\uff04")


def safe_markdown(text: str) -> str:
    """Return `text` that a Markdown renderer shows as text: no HTML, no images, no diagrams, only web links.

    A `<` that could open a tag, `![` and `](` get a space, so that the copied text stays readable
    and `<38` stays as it is. Idempotent. CommonMark 0.31, sections 6.3 (links), 6.4 (images), 6.6
    (raw HTML). Gradio sanitises as well; this also stops what it lets through (outside images, forms).
    """
    text = clean_text(text)
    text = _IMAGE.sub("! ", text)
    text = _LINK.sub("] ", text)
    text = _REFERENCE.sub(r"\1 ", text)
    text = _DIAGRAM.sub("```text ", text)
    return _MARKUP.sub("< ", text)
