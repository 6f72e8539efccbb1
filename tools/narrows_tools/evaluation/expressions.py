r"""Regular expressions as Python's `re` means them, searched under a time limit, which `re` itself does not have.

The package `regex` has one, and takes nearly the same language. What it reads otherwise is rewritten here:

- \w, \W, \b and \B: to `re` a combining mark is no part of a word, to `regex` it is. It matters in text of form NFD,
  where every accent is a mark.
- A brace without a count: to `re` it stands for itself, to `regex` it may be an allowance for errors.
- A bracket within a set: to `re` it stands for itself, to `regex` it may begin a named class.

Left as they are: \B in an empty text, and characters of a Unicode version that only one of the two knows.
"""

import re
import warnings

import regex

FLAGS = regex.IGNORECASE | regex.UNICODE | regex.MULTILINE

PART = re.compile(r"\\N\{[^}]*\}|\\.|\(\?\#[^)]*\)|\[\^?\]?|.", re.DOTALL)
COUNT = re.compile(r"\{\d*,?\d*\}")
WORD = r"\p{L}\p{N}_"
# Within a set there is no complement: all other categories, and of connectors (Pc) all but the underscore.
NO_WORD = r"\p{M}\p{Pd}\p{Ps}\p{Pe}\p{Pi}\p{Pf}\p{Po}\p{S}\p{Z}\p{C}\u203f\u2040\u2054\ufe33\ufe34\ufe4d-\ufe4f\uff3f"
REWRITTEN = {
    r"\w": f"[{WORD}]",
    r"\W": f"[^{WORD}]",
    r"\b": f"(?:(?<=[{WORD}])(?![{WORD}])|(?<![{WORD}])(?=[{WORD}]))",
    r"\B": f"(?:(?<=[{WORD}])(?=[{WORD}])|(?<![{WORD}])(?![{WORD}]))",
}
REWRITTEN_IN_SET = {r"\w": WORD, r"\W": NO_WORD, "[": r"\["}


def compiled(expression: str) -> "regex.Pattern[str] | None":
    """The expression, ignoring case and with ^ and $ at every line; None if `re` refuses it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of syntax that may change its meaning in future
            re.compile(expression, re.IGNORECASE | re.UNICODE | re.MULTILINE)
            return regex.compile(_rewritten(expression), FLAGS)
    except Exception:  # whatever it is: the original catches all
        return None


def _rewritten(expression: str) -> str:
    """The same expression for `regex`."""
    parts: list[str] = []
    in_set = False
    for match in PART.finditer(expression):
        part = match[0]
        if in_set:
            parts.extend(REWRITTEN_IN_SET.get(letter, letter) for letter in ([*part] if part[0] == "[" else [part]))
            in_set = not part.endswith("]") or part.startswith("\\")
        elif part == "{" and not COUNT.match(expression, match.start()):
            parts.append(r"\{")
        else:
            parts.append(REWRITTEN.get(part, part))
            in_set = part.startswith("[")
    return "".join(parts)
