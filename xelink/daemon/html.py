"""A page for a browser that updates itself, and the same content as JSON.

The page uses no framework and loads nothing from other servers, so it works on a node without a
network. All content is escaped. The content security policy allows only the one script and the
styles, by their digests, so nothing else would run even if some text were not escaped.
"""

import json
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from html import escape
from typing import Any, TypeAlias

from xelink.daemon.http_server import Page, PageReply
from xelink.daemon.version import versioned

StatusDocument: TypeAlias = Mapping[str, Any]
"""What a daemon reports about itself, ready for JSON."""


class Html(str):
    """A text that is HTML already."""

    __slots__ = ()


def tag(name: str, *children: str, **attributes: str) -> Html:
    """Return an element; text that is not `Html` is escaped. Attributes: `class_`, `aria_label`."""
    named = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
    )
    return Html(f"<{name}{named}>{''.join(map(_safe, children))}</{name}>")


def _safe(text: str) -> str:
    return text if isinstance(text, Html) else escape(text)


def section(name: str, title: str, *children: str) -> Html:
    """Return one part of the page, with the id `name`."""
    return tag(
        "section", tag("h2", title, id=f"{name}-title"), *children, id=name,
        aria_labelledby=f"{name}-title",
    )  # fmt: skip


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Html:
    """Return a table whose first column names the row."""
    head = tag("tr", *(tag("th", column, scope="col") for column in columns))
    body = [
        tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:]))
        for row in rows
    ]
    if not body:
        return tag("p", f"{caption}: none.", class_="faint")
    whole = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body))
    # Wide tables scroll by themselves, with the keyboard, too.
    return tag("div", whole, class_="scroll", tabindex="0", role="group", aria_label=caption)


def instant(moment: str | None, never: str = "never") -> Html:
    """Return an instant, ISO 8601 or None; the page counts down to it, or up from it."""
    return tag("time", moment, datetime=moment) if moment else tag("span", never)


def words(texts: Iterable[str], none: str = "none") -> Html:
    """Return names in a row, not broken at hyphens; `none` if there are none."""
    return Html(" ".join(tag("span", text, class_="word") for text in texts) or escape(none))


def code(text: str, after: str = "") -> Html:
    """Return a text to compare letter by letter; lines break only `after` that letter."""
    pieces = text.split(after) if after else [text]
    whole = [*(piece + after for piece in pieces[:-1]), pieces[-1]]
    return tag("code", Html("<wbr>".join(tag("span", piece, class_="word") for piece in whole)))


def badge(text: str, *, good: bool) -> Html:
    """Return a highlighted word, with a sign for readers who see no colors."""
    return tag("strong", f"{'✓' if good else '✗'} {text}", class_="good" if good else "bad")


def pages(
    title: str,
    status: Callable[[], StatusDocument],
    body: Callable[[StatusDocument], Sequence[Html]],
) -> Mapping[str, Page]:
    """Return the pages of a daemon: `/` for people, `/status.json` for programs."""

    def page() -> PageReply:
        return _page(title, body(status()))

    def as_json() -> PageReply:
        return PageReply(
            "application/json", json.dumps(versioned(status()), indent=1).encode(), _HEADERS
        )

    return {"/": page, "/status.json": as_json}


def iso(moment: datetime | float | None) -> str | None:
    """Return an instant in ISO 8601; None for 0 and None."""
    if not moment:
        return None
    if isinstance(moment, datetime):
        return moment.isoformat(timespec="seconds")
    return datetime.fromtimestamp(moment).astimezone().isoformat(timespec="seconds")


_HEADERS = (
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
)


def _page(title: str, sections: Sequence[Html]) -> PageReply:
    main = Html("".join(sections))
    text = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
        '<noscript><meta http-equiv="refresh" content="10"></noscript></head><body>'
        f"{tag('header', tag('h1', title), tag('p', '', id='news', role='status'))}"
        f"{tag('main', main)}"
        f'<footer><a href="status.json">status.json</a> <a href="metrics">metrics</a> '
        '<a href="readyz">readyz</a></footer>'
        f"<script>{_SCRIPT}</script></body></html>\n"
    )
    styles = {_STYLE, *_within(main, "<style>", "</style>")}
    policy = (
        "default-src 'none'; connect-src 'self'; base-uri 'none'; form-action 'none';"
        f" frame-ancestors 'none'; script-src {_digest(_SCRIPT)};"
        f" style-src {' '.join(sorted(map(_digest, styles)))}"
    )
    headers = (*_HEADERS, ("Content-Security-Policy", policy))
    # Content may have bytes that are not text; each becomes a question mark.
    return PageReply("text/html; charset=utf-8", text.encode(errors="replace"), headers)


def _within(text: str, start: str, end: str) -> Iterable[str]:
    for part in text.split(start)[1:]:
        yield part.partition(end)[0]


def _digest(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --faint: #59636e; --ground: #f3f5f8;
  --sheet: #ffffff; --line: #d1d9e0; --shade: #1f232828; --good: #116329; --good-sheet: #dafbe1;
  --bad: #a40e26; --bad-sheet: #ffebe9; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --faint: #9198a1; --ground: #010409;
  --sheet: #0d1117; --line: #3d444d; --shade: #e6edf328; --good: #56d364; --good-sheet: #12261e;
  --bad: #ff7b72; --bad-sheet: #301618; } }
body { font: 15px/1.5 system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif; color: var(--ink);
  background: var(--ground); margin: 0 auto; padding: 1.5rem 1rem; max-width: 66rem; }
header { display: flex; flex-wrap: wrap; justify-content: space-between; align-items: baseline;
  gap: 0 1.5rem; padding: 0 .25rem; }
h1 { font-size: 1.35rem; margin: 0; } h2 { font-size: 1.05rem; margin: 0 0 .5rem; }
p, ul { margin: .5rem 0; } p, li { overflow-wrap: anywhere; }
section { background: var(--sheet); border: 1px solid var(--line); border-radius: 10px;
  margin-top: 1rem; padding: 1rem 1.25rem; }
section > :last-child { margin-bottom: 0; }
svg { display: block; margin: 0 auto; max-width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption, thead th { color: var(--faint); font-size: 13px; text-align: left; }
caption { padding-bottom: .15rem; }
th, td { text-align: left; padding: .3rem 1rem .3rem 0; border-top: 1px solid var(--line);
  vertical-align: baseline; font-weight: normal; }
th:last-child, td:last-child { padding-right: 0; }
thead th { border-top: 0; vertical-align: bottom; font-weight: 600; }
tbody th, time, .word, .good, .bad { white-space: nowrap; }
code { font: 13px/1.6 ui-monospace, 'SF Mono', 'DejaVu Sans Mono', monospace; }
/* A shadow where more is to be seen to the left or right; its cover moves with the table. */
.scroll { overflow-x: auto; background:
  linear-gradient(90deg, var(--sheet) 50%, transparent) 0 / 2rem 100% no-repeat local,
  linear-gradient(270deg, var(--sheet) 50%, transparent) 100% / 2rem 100% no-repeat local,
  linear-gradient(90deg, var(--shade), transparent) 0 / .6rem 100% no-repeat scroll,
  linear-gradient(270deg, var(--shade), transparent) 100% / .6rem 100% no-repeat scroll; }
.scroll + .scroll { margin-top: 1rem; }
.good { color: var(--good); } .bad { color: var(--bad); } .faint, footer { color: var(--faint); }
p > .good, p > .bad { padding: .15rem .6rem; border-radius: 1rem; }
p > .good { background: var(--good-sheet); } p > .bad { background: var(--bad-sheet); }
#news { margin: 0; color: var(--faint); } [data-lost] #news { color: var(--bad); }
[data-lost] header { position: sticky; top: 0; background: var(--ground); }
footer { display: flex; gap: 1.25rem; margin: 1rem .25rem 0; } a { color: inherit; }
:focus-visible { outline: 2px solid currentColor; outline-offset: 2px; }
@media (min-width: 48rem) { tbody th:has(code) { width: 18rem; } }
@media (max-width: 48rem) { section { padding: .75rem 1rem; }
  table:not(:has(wbr)) { width: max-content; min-width: 100%; }
  td { max-width: 16rem; overflow-wrap: anywhere; } }
"""

# A part is replaced only if it changed. The focus and the scroll position stay. Changes in a part
# with data-news are announced to screen readers. Styles within a part must be in the first answer,
# whose policy holds.
_SCRIPT = """
'use strict';
const written = new Map();
const told = new Map();
const say = (text) => { document.getElementById('news').textContent = text; };
const span = (seconds) => {
  const s = Math.abs(seconds);
  const parts = [[86400, 'd'], [3600, 'h'], [60, 'min'], [1, 's']];
  const at = parts.findIndex(([size], i) => s >= size || i === 3);
  const [size, unit] = parts[at];
  const rest = at < 3 ? ` ${Math.floor((s % size) / parts[at + 1][0])} ${parts[at + 1][1]}` : '';
  return `${Math.floor(s / size)} ${unit}${rest}`;
};
const count = () => {
  for (const time of document.querySelectorAll('time')) {
    const left = (Date.parse(time.dateTime) - Date.now()) / 1000;
    time.title = time.dateTime;
    time.textContent = left > 0 ? `in ${span(left)}` : `${span(left)} ago`;
  }
};
const take = (text) => {
  const parts = [...new DOMParser().parseFromString(text, 'text/html')
    .querySelectorAll('main > section')];
  const main = document.querySelector('main');
  for (const part of parts) {
    if (written.get(part.id) === part.outerHTML) continue;
    const first = !written.has(part.id);
    written.set(part.id, part.outerHTML);
    const old = document.getElementById(part.id);
    const kept = old && old.contains(document.activeElement) &&
      [...old.querySelectorAll('[tabindex],a')].indexOf(document.activeElement);
    const scrolled = old ? [...old.querySelectorAll('.scroll')].map((box) => box.scrollLeft) : [];
    const news = part.querySelector('[data-news]');
    if (old) old.replaceWith(part); else main.append(part);
    if (typeof kept === 'number' && kept >= 0) {
      const again = part.querySelectorAll('[tabindex],a')[kept];
      if (again) again.focus();
    }
    part.querySelectorAll('.scroll').forEach((box, at) => { box.scrollLeft = scrolled[at] || 0; });
    if (news && !first && told.get(part.id) !== news.textContent) say(news.textContent);
    if (news) told.set(part.id, news.textContent);
  }
  const ids = new Set(parts.map((part) => part.id));
  for (const old of [...main.children]) {
    if (!ids.has(old.id)) {
      written.delete(old.id);
      old.remove();
    }
  }
};
const renew = async () => {
  try {
    const answer = await fetch('./', { cache: 'no-store' });
    if (!answer.ok) throw new Error(answer.statusText);
    take(await answer.text());
    if (document.body.hasAttribute('data-lost')) {
      document.body.removeAttribute('data-lost');
      say('It answers again.');
    }
  } catch (error) {
    if (!document.body.hasAttribute('data-lost')) {
      document.body.setAttribute('data-lost', '');
      say(`No answer since ${new Date().toLocaleTimeString()}: this content is old.`);
    }
  }
  count();
};
count();
setInterval(count, 1000);
setInterval(renew, 5000);
renew();
"""
