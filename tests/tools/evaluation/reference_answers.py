r"""A slow and plain answer matcher, written from the rules alone, for the tests to check the real one against.

A passage has the answer if its text contains any of the answers. Both kinds look at the text in Unicode NFD:

- "string": the answer, in NFD too, is found token by token. A run of letters, numbers and marks (categories L, N, M) is
  one token, any other character but separators (Z) and control and format characters (C) is a token of its own. Tokens
  are lower-cased one by one, and the answer's must stand in the text in one unbroken stretch. An answer without tokens
  is in every text.
- "regex": the answer is a regular expression, searched anywhere in the text. The pattern is put into NFD as it stands,
  before it is compiled. One that does not compile finds nothing.

Categories are those of the running Python's `unicodedata`. A character that a later Unicode assigned is unassigned (Cn)
here and separates, while a matcher with newer tables, such as the `regex` package's, may take it for a letter or a
symbol. Random tests should therefore draw no character of category Cn; `CASES` holds none.
"""

import re
import unicodedata
import warnings
from collections.abc import Sequence


def tokens(text: str) -> list[str]:
    """The text's tokens in order, as they are compared: in NFD and lower case."""
    found = []
    run = ""
    for character in unicodedata.normalize("NFD", text):
        major = unicodedata.category(character)[0]
        if major in ("L", "N", "M"):
            run = run + character
            continue
        if run != "":
            found.append(run.lower())
            run = ""
        if major not in ("Z", "C"):
            found.append(character.lower())
    if run != "":
        found.append(run.lower())
    return found


def string_match(answer: str, text: str) -> bool:
    """Whether the answer's tokens stand in the text, one right after the other."""
    wanted = tokens(answer)
    present = tokens(text)
    start = 0
    while start + len(wanted) <= len(present):
        same = 0
        while same < len(wanted) and present[start + same] == wanted[same]:
            same = same + 1
        if same == len(wanted):
            return True
        start = start + 1
    return False


def regex_match(pattern: str, text: str) -> bool:
    """Whether the pattern, in NFD, is found anywhere in the NFD text; never if it does not compile."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "[[" and the like compile with a FutureWarning
        try:
            compiled = re.compile(unicodedata.normalize("NFD", pattern), re.IGNORECASE | re.UNICODE | re.MULTILINE)
        except (re.error, ValueError, OverflowError, RecursionError):  # re raises more than its own error
            return False
    return compiled.search(unicodedata.normalize("NFD", text)) is not None


def has_answer(answers: Sequence[str], text: str, kind: str) -> bool:
    """Whether the text contains any of the answers, which are of kind "string" or "regex"."""
    if kind not in ("string", "regex"):
        raise ValueError(f"no such kind of answer: {kind!r}")
    for answer in answers:
        if kind == "string" and string_match(answer, text):
            return True
        if kind == "regex" and regex_match(answer, text):
            return True
    return False


# Answers, text, kind, whether the text has an answer. Escapes where the exact characters are the point.
CASES: list[tuple[list[str], str, str, bool]] = [
    # Lists of answers, and answers of nothing.
    ([], "Paris", "string", False),  # no answer is in nothing
    ([], "Paris", "regex", False),  # nor for patterns
    (["Rome", "paris"], "In PARIS.", "string", True),  # any answer will do, in any case
    ([""], "", "string", True),  # no token: in every text, the empty one too
    ([" \u200d\n\u00ad"], "Paris", "string", True),  # only separators and format characters: no token either
    # Stretches of tokens.
    (["art"], "the party", "string", False),  # tokens, not substrings
    (["new york"], "a new yorker", "string", False),  # the last token must be whole, too
    (["a a b"], "a a a b", "string", True),  # a failed start must not swallow the next one
    (["b c"], "a b", "string", False),  # the text ends within the answer
    (["new york"], "NEW\u00a0\n\tYork", "string", True),  # which separators, and how many, does not matter
    (["neill"], "O'Neill's", "string", True),  # an apostrophe splits words
    (["o'neill"], "O Neill", "string", False),  # and is a token, not dropped
    (["snake"], "snake_case", "string", True),  # the underscore is punctuation (Pc), though \w has it
    (["..."], "wait....", "string", True),  # each mark its own token: no runs of punctuation
    # Normal forms.
    (["caf\u00e9"], "cafe\u0301", "string", True),  # composed and decomposed are the same
    (["cafe"], "caf\u00e9", "string", False),  # accents stay
    (["a\u0307\u0323"], "\u1ea1\u0307", "string", True),  # NFD sorts marks
    (["fi"], "\ufb01", "string", False),  # the ligature comes apart in NFKD only
    (["\u4e3d"], "\U0002f800", "string", True),  # a compatibility ideograph beyond the BMP is plain in NFD
    (["\ud55c\uad6d"], "\u1112\u1161\u11ab\u1100\u116e\u11a8", "string", True),  # Hangul syllables come apart
    # Marks are in words, even at their start.
    (["\u0939"], "\u0939\u093f\u0928\u094d\u0926\u0940", "string", False),  # Hindi is one token; \w splits it at vowels
    (["b"], "a-\u0301b", "string", False),  # a mark after punctuation starts the next token
    (["b"], "a\u2260b", "string", False),  # so the not-equal sign, "=" and a mark in NFD, swallows what follows
    (["love"], "\u2764\ufe0flove", "string", False),  # an emoji's variation selector (Mn) does the same
    # Format, private and other characters of category C separate.
    (["co operate"], "co\u00adoperate", "string", True),  # the soft hyphen separates, it is not dropped
    (["\U0001f680"], "\U0001f469\u200d\U0001f680", "string", True),  # so does the zero-width joiner, in emoji too
    (["a b"], "a\ue000\ud800\x00\ufeffb", "string", True),  # private, lone surrogate, NUL, byte order mark
    # Runs and lone characters beyond the BMP.
    (["\u6771\u4eac"], "\u6771\u4eac\u90fd", "string", False),  # a run of ideographs is one token: Tokyo, Tokyo-to
    (["\u6771\u4eac"], "\u300c\u6771\u4eac\u300d", "string", True),  # set off by brackets it is found
    (["\U0001f600"], "\U0001f600\U0001f600", "string", True),  # symbols make no run
    (["\U00010400"], "\U00010428", "string", True),  # Deseret has case
    # Lower case, token by token.
    (["stra\u00dfe"], "STRASSE", "string", False),  # lower case, not case folding
    (["i\u0307zmir"], "\u0130ZMIR", "string", True),  # the dotted I is I and a dot in NFD
    (["izmir"], "\u0130zmir", "string", False),  # the dot stays
    (["\u039f\u03a3"], "\u03bf\u03c2", "string", True),  # a capital sigma at a token's end becomes a final one
    (["\u039f\u03a3"], "\u03bf\u03c3", "string", False),  # not a plain one
    (["\u03bf\u03c2"], "\u039f\u03a3'\u0391", "string", True),  # final in its token, though not in the whole text
    (["\u03c3"], "\u0391'\u03a3", "string", True),  # and a token of its own is plain, though the text's would be final
    (["\u2167 \u24d0"], "\u2177 \u24b6", "string", True),  # numbers (Nl) and symbols (So) have lower case
    # Patterns.
    (["art"], "the PARTY", "regex", True),  # anywhere, in any case
    ([""], "", "regex", True),  # the empty pattern is found everywhere
    (["^rome$"], "Paris\nRome\nOslo", "regex", True),  # line by line
    (["paris.rome"], "Paris\nRome", "regex", False),  # but a dot ends at the line
    (["caf\u00e9"], "caf\u00e9", "regex", True),  # the pattern is normalized like the text
    (["caf[\u00e9]$"], "caf\u00e9", "regex", False),  # as it stands: a set of two characters, of which one is found
    (["cafe\u0301"], "caf\u00e9", "regex", True),  # written as NFD it is found
    (["[[]a"], "[A", "regex", True),  # compiles, if with a FutureWarning
    (["("], "(", "regex", False),  # does not compile: no match, not even of itself
    (["(", "pa"], "Paris", "regex", True),  # the other answers still count
    (["a{99999999999999999999}"], "a", "regex", False),  # an OverflowError
    (["(?a)a"], "a", "regex", False),  # a ValueError: ASCII and UNICODE at once
]
