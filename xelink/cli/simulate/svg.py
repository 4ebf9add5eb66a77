"""What the policies got as a picture: two bars for each. Pure.

Colors are classes, for light and dark alike; no script, no font and no file is referred to, so
that the picture can stand in any page.
"""

from xml.etree.ElementTree import Element, SubElement, indent, tostring

from xelink.cli.simulate.report import SimulationReport
from xelink.cli.simulate.text import percent

_STYLE = """
text { font: 13px system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif; fill: #1f2328; }
.title { font-size: 16px; font-weight: 600; }
.name { font-weight: 600; text-anchor: end; }
.faint { fill: #59636e; font-size: 12px; }
.sheet { fill: #ffffff; }
.whole { fill: #eaeef2; }
.linked { fill: #0969da; }
.lanes { fill: #8250df; }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; }
.faint { fill: #9198a1; }
.sheet { fill: #0d1117; }
.whole { fill: #212830; }
.linked { fill: #58a6ff; }
.lanes { fill: #a371f7; }
}
"""

_WIDTH = 720
_LEFT = 110
_LENGTH = 380
_TOP = 106
_BAR = 16
_SIGN = 12
_STEP = 58
_LINE = 13
_LONGEST_TITLE = 84


def bars(title: str, report: SimulationReport) -> str:
    """Draw the chart; a text in XML."""
    height = _TOP + _STEP * len(report.sums) + 8
    size = {"width": str(_WIDTH), "height": str(height)}
    root = Element(
        "svg",
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_WIDTH} {height}",
        role="img",
        attrib={**size, "aria-labelledby": "title desc"},
    )
    runs = len(report.seeds)
    label = f"{report.several} Pods with several GPUs" + (f" in {runs} runs" if runs > 1 else "")
    SubElement(root, "title", id="title").text = title
    shares = (
        f"{kind} {percent(sums.linked, report.several)}" for kind, sums in report.sums.items()
    )
    SubElement(root, "desc", id="desc").text = f"{label}. Fully linked: {', '.join(shares)}"
    SubElement(root, "style").text = _STYLE
    SubElement(root, "rect", attrib={"class": "sheet", **size, "rx": "8"})
    _text(root, 24, 34, title[:_LONGEST_TITLE], "title")
    _text(root, 24, 56, label, "faint")
    for x, name, meaning in (
        (_LEFT, "linked", "Pods fully linked"),
        (_LEFT + 170, "lanes", "lanes, of those possible"),
    ):
        _bar(root, x, 74, _SIGN, name, _SIGN)
        _text(root, x + 20, 84, meaning, "faint")
    for at, (kind, sums) in enumerate(report.sums.items()):
        y = _TOP + _STEP * at
        _text(root, _LEFT - 14, y + _BAR + 5, kind, "name")
        for line, (name, part, whole) in enumerate(
            (
                ("linked", sums.linked, report.several),
                ("lanes", sums.lanes, report.lanes_possible),
            )
        ):
            top = y + line * (_BAR + 4)
            _bar(root, _LEFT, top, _LENGTH, "whole")
            _bar(root, _LEFT, top, _LENGTH * part / whole if whole else 0, name)
            label = f"{percent(part, whole)}  {part} of {whole}"
            _text(root, _LEFT + _LENGTH + 12, top + _LINE, label, "faint")
    indent(root)
    return tostring(root, encoding="unicode") + "\n"


def _bar(root: Element, x: float, y: float, width: float, name: str, height: float = _BAR) -> None:
    place = {"x": f"{x:g}", "y": f"{y:g}", "width": f"{width:.1f}", "height": f"{height:g}"}
    SubElement(root, "rect", attrib={"class": name, **place})


def _text(root: Element, x: float, y: float, text: str, name: str) -> None:
    place = {"x": f"{x:g}", "y": f"{y:g}", "class": name}
    SubElement(root, "text", attrib=place).text = text
