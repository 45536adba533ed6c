"""Captions for labelled images, and a tokenizer that knows their words."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from transformers import CLIPTokenizer

from fairbench.core.errors import ContractError
from fairbench.core.prompts import Phrase, spoken
from fairbench.core.task import Prompt

__all__ = ["PLAIN_WORDS", "caption", "word_tokenizer", "words_of"]

PLAIN_WORDS = (
    "a an photo of portrait face with and or the diverse fair "
    "woman man women men people worker any gender race ethnicity"
)
"""Known to the tokenizer as whole words, beside those of a data set's captions."""

EMPTY = 0.1
"""Share of captions that are empty, for guidance."""

WORDS_ALONE = 0.1
"""Share of captions that are attribute words alone."""

DROPPED = 0.6
"""Share of attributes that a sentence leaves out: most prompts name none."""


def caption(rng: np.random.Generator, prompt: Prompt, phrases: Sequence[Phrase]) -> str:
    """A random caption: empty, attribute words alone, or a sentence that names some of them.

    Args:
        rng: Draws which.
        prompt: The neutral prompt of what the image shows.
        phrases: How the image's attributes are said, in declared order.
    """
    kind = rng.random()
    if kind < EMPTY:
        return ""
    places = range(len(phrases))[::-1]  # as they are read: race before gender
    if kind < EMPTY + WORDS_ALONE and phrases:
        some = [one for k in places for one in itertools.combinations(places, k + 1)]
        return spoken([phrases[place] for place in sorted(some[rng.integers(len(some))])])
    chosen = [place for place in places if rng.random() >= DROPPED]
    return prompt.naming([phrases[place] for place in sorted(chosen)])


def words_of(sentences: Iterable[str]) -> set[str]:
    """The plain words of sentences, in small letters; a tokenizer spells what isn't one."""
    return {word for one in sentences for word in re.findall(r"[a-z]+", one.lower())}


def word_tokenizer(folder: Path, words: Iterable[str], length: int) -> CLIPTokenizer:
    """A CLIP tokenizer: one token for each word, bytes for any other text.

    Args:
        folder: Where its two files are written to.
        words: Of small letters a to z.
        length: Tokens of a prompt, its begin and end among them.
    """
    known_words = sorted(set(words))
    letters = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256))]
    letters += [chr(256 + i) for i in range(256 - len(letters))]
    merges: list[tuple[str, str]] = []
    for word in known_words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while True:  # byte-pair encoding with the merges so far
            pairs = list(itertools.pairwise(pieces))
            known = [pair for pair in pairs if pair in merges]
            if not known:
                break
            at = pairs.index(min(known, key=merges.index))
            pieces[at : at + 2] = ["".join(pieces[at : at + 2])]
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces[:2] = ["".join(pieces[:2])]
    symbols = [*letters, *(letter + "</w>" for letter in letters), *("".join(m) for m in merges)]
    symbols += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {symbol: i for i, symbol in enumerate(dict.fromkeys(symbols))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges)
    )
    made = CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=length
    )
    for word in known_words:
        if len(made.tokenize(word)) != 1:
            raise ContractError(f"expected one token for {word!r}, seen {made.tokenize(word)}")
    return made
