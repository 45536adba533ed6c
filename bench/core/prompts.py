"""How a subject and levels of attributes become one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Phrase", "describe", "spoken"]


@dataclass(frozen=True)
class Phrase:
    """How a level of an attribute is said.

    Attributes:
        text: Such as ``"female"`` or ``"wearing glasses"``.
        after: Whether it stands behind the noun, as the second does.
    """

    text: str
    after: bool = False


def spoken(phrases: Sequence[Phrase], subject: str = "") -> str:
    """A subject with phrases around it: ``"asian female person wearing glasses"``.

    Args:
        phrases: In the order of their attributes. Those before the noun are read from the last to
            the first, as in "asian female" for gender and race; those behind it as they come.
        subject: A noun phrase without article; empty: the phrases alone.
    """
    before = [phrase.text for phrase in reversed(phrases) if not phrase.after]
    after = [phrase.text for phrase in phrases if phrase.after]
    return " ".join(filter(None, [*before, subject, *after]))


def describe(subject: str, phrases: Sequence[Phrase] = (), template: str = "{}") -> str:
    """The sentence of a prompt: ``"a photo of an asian female person"``.

    Args:
        subject: A noun phrase without article, such as ``"tennis player"``.
        phrases: In the order of their attributes.
        template: What stands around the noun phrase, whose place is ``{}``.

    Returns:
        The sentence; empty without a subject and without phrases.
    """
    phrase = spoken(phrases, subject)
    if not phrase:  # of a backbone that takes no prompt
        return ""
    article = "an" if phrase[0].lower() in "aeiou" else "a"
    return template.replace("{}", f"{article} {phrase}")
