"""Whether a reader's answer is right: exact match and F1, as SQuAD v1.1 counts them, of the passage's own words.

DPR counts by the same rules, but what its tokens decode to, "u. s." for "U.S.", which is right less often: of the same
spans its number is somewhat lower.

Both compare words: lower-cased, without ASCII punctuation and the English articles (Rajpurkar et al., EMNLP 2016,
section 4.1; the official evaluate-v1.1.py). Of several right answers the best counts. Composed and decomposed text is
the same here: both are made NFC first, which changes nothing for data that is NFC.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def words(text: str) -> list[str]:
    """What is compared."""
    text = unicodedata.normalize("NFC", text)
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def exact_match(answer: str, right: Iterable[str]) -> bool:
    """Whether the answer is one of the right ones, word for word; an empty one, where none was found, never is."""
    found = words(answer)
    return answer != "" and any(found == words(text) for text in right)


def f1(answer: str, right: Iterable[str]) -> float:
    """The harmonic mean of the shares of words in common; 0 without any, and for no right answer."""
    return max((_f1(words(answer), words(text)) for text in right), default=0.0)


def _f1(found: list[str], wanted: list[str]) -> float:
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted)) if common else 0.0
