"""Texts of others, made fit to be shown: the one place that decides what a line may hold. Pure."""

_ESCAPED_BYTES = range(0xDC80, 0xDD00)  # how Python carries bytes of a file name that are no text


def printable(text: str, most: int | None = None) -> str:
    r"""Return a text that is one line and moves no cursor, of at most `most` characters.

    Whatever is not printable (controls, line ends, what turns the direction of writing, bytes that
    are no text) is written as Python would: `\x1b`, `\n`, `\u202e`. What is printable stays.
    """
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() else _escape(letter) for letter in text)
    return text if most is None else text[:most]


def _escape(letter: str) -> str:
    if ord(letter) in _ESCAPED_BYTES:
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode()


def printable_lines(text: str) -> str:
    """Return a text of several lines, each of them printable."""
    if text.replace("\n", "").isprintable():
        return text
    return "\n".join(map(printable, text.split("\n")))
