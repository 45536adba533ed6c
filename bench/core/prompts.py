"""The sentences that prompts and captions are made of."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["describe"]


def describe(subject: str, words: Sequence[str] = ()) -> str:
    """``"a photo of an asian female person"``: a subject with attribute words before it.

    Args:
        subject: A noun phrase without article, such as ``"tennis player"``.
        words: Attribute words in the order in which they are to be read.
    """
    phrase = " ".join((*words, subject))
    article = "an" if phrase[0] in "aeiou" else "a"
    return f"a photo of {article} {phrase}"
