"""Which metrics an expression of PromQL names."""

import re

# What may stand where a name does and is none.
_WORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan", "start", "end"}
_LABEL_LISTS = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_MATCHERS = re.compile(r"\{[^{}]*\}")
_STRINGS = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'")
_RANGES = re.compile(r"\[[^\]]*\]")
_OFFSETS = re.compile(r"\boffset\s+-?\w+")
_NAMES = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*(?!\w|:|\s*\()")
_NUMBERS = re.compile(r"(?<![\w:])(0x[0-9a-fA-F]+|\d+(\.\d*)?([eE][+-]?\d+)?|\.\d+)")


def names(expression: str) -> set[str]:
    """Returns the names of series in `expression`; naming one by a matcher of `__name__` is an error."""
    if "__name__" in expression:
        raise ValueError("a series is named by a matcher, not by its name")
    for pattern in (_STRINGS, _MATCHERS, _RANGES, _OFFSETS, _LABEL_LISTS, _NUMBERS):
        expression = pattern.sub(" ", expression)
    return {name for name in _NAMES.findall(expression) if name.lower() not in _WORDS}
