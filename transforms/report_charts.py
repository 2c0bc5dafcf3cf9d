"""The report page's parts: markup of charts and tables, in which all text is escaped."""

from __future__ import annotations

import html
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

CATEGORY_COLOURS = 10
OTHER_COLOUR = 10
_RAMP_STEPS = 5
_MOST_TICKS = 8
_MAP_WIDTH, _MAP_HEIGHT, _MAP_MARGIN = 1000, 760, 26


def escape(value: object) -> str:
    """Any text as HTML text, also within a quoted attribute."""
    return html.escape(str(value), quote=True)


def format_count(value: float) -> str:
    """1,234,567."""
    return f"{value:,.0f}"


def format_number(value: float | None) -> str:
    """Four digits or so: 12,345, 12.35, 0.001235; a dash for what there is not."""
    if value is None:
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def format_share(part: float, whole: float) -> str:
    """4.2 %; never 0 % or 100 % of what is not none or all."""
    if not whole:
        return "–"
    percent = 100 * part / whole
    if 0 < percent < 0.1:
        return "<\u00a00.1\u00a0%"
    if 99.9 < percent < 100:
        return ">\u00a099.9\u00a0%"
    return f"{percent:.1f}\u00a0%" if percent % 100 else f"{percent:.0f}\u00a0%"


def format_seconds(seconds: float) -> str:
    """8.1 s, 12 min 3 s, 3 h 12 min."""
    if seconds < 99.95:
        return f"{seconds:.1f}\u00a0s" if seconds >= 0.95 else f"{seconds:.2f}\u00a0s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}\u00a0min {whole % 60}\u00a0s"
    return f"{whole // 3600:,}\u00a0h {whole % 3600 // 60}\u00a0min"


def format_bytes(size: float) -> str:
    """1.26 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.5 or unit == "TB":
            break
        size /= 1000
    return f"{size:.3g}\u00a0{unit}"


def make_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, numeric: Sequence[int] = ()
) -> str:
    """A table; cells are markup already. Columns in `numeric` are set flush right."""

    def cell(tag: str, column: int, content: str) -> str:
        number = ' class="num"' if column in numeric else ""
        scope = ' scope="col"' if tag == "th" else ""
        return f"<{tag}{scope}{number}>{content}</{tag}>"

    head = "".join(cell("th", column, escape(text)) for column, text in enumerate(headings))
    body = "".join(
        f"<tr>{''.join(cell('td', column, content) for column, content in enumerate(row))}</tr>"
        for row in rows
    )
    return (
        '<div class="scroll" tabindex="0" role="group" aria-label="table"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def make_list(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and values; the values are markup already."""
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{value}</dd></div>" for name, value in pairs)
    return f'<dl class="facts">{items}</dl>'


def fold(summary: str, content: str) -> str:
    """Something to be opened when it is wanted."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a whole; `colour` is the name of a CSS variable without its dashes."""

    name: str
    amount: float
    colour: str
    shown: str


def make_stack(shares: Sequence[Share], *, label: str) -> str:
    """A whole as one bar in parts, with a legend."""
    real = [share for share in shares if share.amount > 0]
    bars = "".join(
        f'<i style="flex-grow:{share.amount:g};background:var(--{share.colour})" '
        f'title="{escape(share.name)}: {escape(share.shown)}"></i>'
        for share in real
    )
    legend = "".join(
        f'<li><i style="background:var(--{share.colour})"></i>{escape(share.name)} '
        f"<b>{escape(share.shown)}</b></li>"
        for share in shares
    )
    return (
        f'<div class="stack" role="img" aria-label="{escape(label)}">{bars}</div>'
        f'<ul class="legend">{legend}</ul>'
    )


@dataclass(frozen=True, slots=True)
class Bars:
    """A histogram: bars of equal width.

    titles: what a bar says when pointed at; ticks: (bar, label), at the bar's left edge;
    marked, faint: bars in the accent colour, and in grey; line: (bar, label) of a vertical line.
    """

    values: Sequence[float]
    titles: Sequence[str]
    ticks: Sequence[tuple[float, str]]
    top: str
    label: str
    marked: frozenset[int] = field(default=frozenset())
    faint: frozenset[int] = field(default=frozenset())
    line: tuple[float, str] | None = None
    dense: bool = False


def make_bars(bars: Bars) -> str:
    """Draw a histogram that stays readable at any width: its labels are not scaled."""
    highest = max(bars.values, default=0) or 1
    count = max(1, len(bars.values))
    classes = {
        **dict.fromkeys(bars.marked, " class=mark"),
        **dict.fromkeys(bars.faint, " class=rest"),
    }
    drawn = "".join(
        f'<i{classes.get(number, "")} style="height:'
        f'{100 * value / highest:.2f}%" title="{escape(title)}"></i>'
        for number, (value, title) in enumerate(zip(bars.values, bars.titles, strict=True))
    )
    ticks = "".join(
        f'<span{_edge(at / count)} style="left:{100 * at / count:.2f}%">{escape(label)}</span>'
        for at, label in bars.ticks
    )
    line = ""
    if bars.line is not None:
        at, label = bars.line
        line = (
            f'<div class="rule" style="left:{100 * at / count:.2f}%">'
            f"<span>{escape(label)}</span></div>"
        )
    return (
        f'<figure class="bars{" dense" if bars.dense else ""}" role="img" '
        f'aria-label="{escape(bars.label)}"><div class="top">{escape(bars.top)}</div>'
        f'<div class="plot">{drawn}{line}</div><div class="axis">{ticks}</div></figure>'
    )


def nice_steps(most: float) -> list[int]:
    """Some round numbers below `most`, evenly apart."""
    sizes = (factor * 10**power for power in itertools.count() for factor in (1, 2, 5))
    step = next(size for size in sizes if most / size <= _MOST_TICKS)
    return [*range(step, int(most) + 1, step)]


def _edge(share: float) -> str:
    """Labels at the ends of an axis stay within it."""
    if share < 0.03:
        return " class=first"
    return " class=last" if share > 0.97 else ""


@dataclass(frozen=True, slots=True)
class Colouring:
    """One way to colour the points of a map.

    colours: a colour a point; shown: what is said of each point, or ""; legend: (colour, label,
    points); ramp: whether colours are steps of one scale.
    """

    name: str
    colours: list[int]
    shown: list[str]
    legend: list[tuple[int, str, int]]
    ramp: bool


def colour_categories(name: str, values: Sequence[str | None]) -> Colouring:
    """The most frequent values get a colour of their own, the rest share one."""
    known = Counter(value for value in values if value is not None)
    ranked = sorted(known, key=lambda value: (-known[value], value))
    if len(ranked) > CATEGORY_COLOURS:
        ranked = ranked[: CATEGORY_COLOURS - 1]
    colour_of = {value: number for number, value in enumerate(ranked)}
    colours = [OTHER_COLOUR if one is None else colour_of.get(one, OTHER_COLOUR) for one in values]
    legend = [(number, value, known[value]) for number, value in enumerate(ranked)]
    others = colours.count(OTHER_COLOUR)
    if others:
        legend.append((OTHER_COLOUR, "other or none", others))
    return Colouring(name, colours, ["" if one is None else one for one in values], legend, False)


def colour_numbers(name: str, values: Sequence[float | None]) -> Colouring:
    """Five steps with about as many points each; what has no number has no step."""
    known = sorted(value for value in values if value is not None)
    places = [len(known) * step // _RAMP_STEPS for step in range(1, _RAMP_STEPS)]
    cuts = sorted({known[place] for place in places} - {known[0]}) if known else []
    colours = [
        OTHER_COLOUR if value is None else sum(value >= cut for cut in cuts) for value in values
    ]
    legend = []
    for number in range(len(cuts) + 1):
        members = [value for value in known if sum(value >= cut for cut in cuts) == number]
        if members:
            low, high = _plain(members[0]), _plain(members[-1])
            label = low if low == high else f"{low} – {high}"
            legend.append((number, label, len(members)))
    if OTHER_COLOUR in colours:
        legend.append((OTHER_COLOUR, "none", colours.count(OTHER_COLOUR)))
    shown = ["" if value is None else _plain(value) for value in values]
    return Colouring(name, colours, shown, legend, True)


def _plain(value: float) -> str:
    """A number as in the source: a year has no comma."""
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4g}"


def colour_class(colouring: Colouring, colour: int) -> str:
    """The CSS class of a colour."""
    return f"{'r' if colouring.ramp and colour != OTHER_COLOUR else 'c'}{colour}"


def place_points(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[int, int]]:
    """Places in the map's frame: the same scale both ways, centred, y upwards."""
    if not xs:
        return []
    left, low = min(xs), min(ys)
    across, up = max(xs) - left, max(ys) - low
    width, height = _MAP_WIDTH - 2 * _MAP_MARGIN, _MAP_HEIGHT - 2 * _MAP_MARGIN
    scales = [room / span for room, span in ((width, across), (height, up)) if span > 0]
    scale = min(scales, default=0.0)
    left_gap = _MAP_MARGIN + (width - across * scale) / 2
    top_gap = _MAP_MARGIN + (height - up * scale) / 2
    return [
        (
            round(left_gap + (x - left) * scale),
            round(_MAP_HEIGHT - top_gap - (y - low) * scale),
        )
        for x, y in zip(xs, ys, strict=True)
    ]


def make_map(points: Sequence[tuple[int, int]], colouring: Colouring, *, label: str) -> str:
    """The points as an SVG; a dot keeps its size whatever the size of the map."""
    dots = "".join(
        f'<path class="{colour_class(colouring, colour)}" d="M{x} {y}h0"/>'
        for (x, y), colour in zip(points, colouring.colours, strict=True)
    )
    return (
        f'<svg id="plane" viewBox="0 0 {_MAP_WIDTH} {_MAP_HEIGHT}" tabindex="0" '
        f'role="application" aria-label="{escape(label)}" aria-describedby="map-help map-read">'
        f'<g id="dots">{dots}</g><path id="ring" d="M-99 -99h0"/><path id="core" d="M-99 -99h0"/>'
        "</svg>"
    )


def make_legend(colouring: Colouring) -> str:
    """The colours of a map, as buttons that single one out."""
    items = "".join(
        f'<li><button type="button" aria-pressed="false" data-colour="{colour}">'
        f'<i class="{colour_class(colouring, colour)}"></i>{escape(label)} '
        f"<b>{format_count(count)}</b></button></li>"
        for colour, label, count in colouring.legend
    )
    return f'<ul id="map-legend" class="keys">{items}</ul>'


def describe_colouring(colouring: Colouring) -> dict[str, Any]:
    """A colouring as the page's script takes it."""
    return {
        "name": colouring.name,
        "classes": [colour_class(colouring, colour) for colour in colouring.colours],
        "colours": colouring.colours,
        "shown": colouring.shown,
        "legend": [
            {"colour": colour, "class": colour_class(colouring, colour), "label": label, "n": count}
            for colour, label, count in colouring.legend
        ],
    }
