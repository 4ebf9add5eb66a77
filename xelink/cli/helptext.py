"""The layout of a command's help, which is the same with every Python."""

import argparse
from collections.abc import Iterable, Iterator, Sequence


class HelpFormatter(argparse.HelpFormatter):
    """Fills paragraphs and leaves examples unchanged.

    Usage and options are formatted here, because argparse formats them differently in each Python.
    """

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return text
        return super()._fill_text(text, width, indent)

    def add_argument(self, action: argparse.Action) -> None:
        """Add an action; the column of command names is as wide as the longest name."""
        super().add_argument(action)
        for command in self._iter_indented_subactions(action):
            width = self._current_indent + len(self._format_action_invocation(command))
            self._action_max_length = max(self._action_max_length, width)

    # usage = "usage: " program *( " " option ) *( " " argument ) ; where that is too long for one
    # line, arguments begin on one of their own
    def _format_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[argparse._MutuallyExclusiveGroup],
        prefix: str | None,
    ) -> str:
        start = f"{'usage: ' if prefix is None else prefix}{usage or self._prog}"
        options: list[str] = []
        arguments: list[str] = []
        for members, required in () if usage else _grouped(actions, groups):
            part = " | ".join(map(self._part, members))
            if not required:
                part = f"[{part}]"
            elif len(members) > 1:
                part = f"({part})"
            (options if any(one.option_strings for one in members) else arguments).append(part)
        width = self._width - self._current_indent
        line = " ".join((start, *options, *arguments))
        if len(line) > width:
            indent = len(start) + 1
            lines = [*_filled(options, width - indent), *_filled(arguments, width - indent)]
            line = f"{start} " + ("\n" + " " * indent).join(lines)
        return f"{line}\n\n"

    # part = option [ " " value ] / value
    def _part(self, action: argparse.Action) -> str:
        """Return an action as in the usage, without brackets for optional ones."""
        if not action.option_strings:
            value = self._format_args(action, action.dest)
            return value[1:-1] if action.nargs == argparse.OPTIONAL else value
        if action.nargs == 0:
            return action.option_strings[0]
        return f"{action.option_strings[0]} {self._format_args(action, action.dest.upper())}"

    # invocation = option *( ", " option ) [ " " value ]
    def _format_action_invocation(self, action: argparse.Action) -> str:
        options = ", ".join(action.option_strings)
        if options and action.nargs != 0:
            return f"{options} {self._format_args(action, action.dest.upper())}"
        return options or super()._format_action_invocation(action)


def _grouped(
    actions: Iterable[argparse.Action], groups: Iterable[argparse._MutuallyExclusiveGroup]
) -> Iterator[tuple[Sequence[argparse.Action], bool]]:
    """Return each action, or a group of exclusive ones, and whether one is required."""
    grouped = [(group._group_actions, group.required) for group in groups]  # noqa: SLF001 - argparse has no public access to them
    shown = [action for action in actions if action.help != argparse.SUPPRESS]
    for action in shown:
        for members, required in grouped:
            if action in members:
                if action is next(one for one in shown if one in members):
                    yield [one for one in shown if one in members], required
                break
        else:
            yield [action], action.required


def _filled(parts: Iterable[str], width: int) -> Iterator[str]:
    """Return lines filled with parts; one that is too long is broken between its choices."""
    line = ""
    for part in (piece for whole in parts for piece in _pieces(whole, width)):
        if line and len(line) + 1 + len(part) > width:
            yield line
            line = ""
        line = f"{line} {part}".lstrip()
    if line:
        yield line


def _pieces(part: str, width: int) -> Iterator[str]:
    """Return a part, or the choices of one that is too long for a line."""
    if len(part) <= width:
        yield part
        return
    *choices, last = part.split(" | ")
    yield from (f"{choice} |" for choice in choices)
    yield last
