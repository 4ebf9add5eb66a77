"""How the help of a command is laid out."""

import argparse


class HelpFormatter(argparse.HelpFormatter):
    """Fills paragraphs, and leaves examples as they are written."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return text
        return super()._fill_text(text, width, indent)
