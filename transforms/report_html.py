"""`report.html`: the report of a run as one page, made from `report.json` alone.

The page needs no network and its security policy allows none: its style and its one script stand
in it. Whatever comes from a corpus is escaped, and the policy names the script by its hash, so that
no other one would run.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import itertools
import shlex
from collections.abc import Mapping
from typing import Any

import orjson

from transforms.report_charts import (
    Bars,
    Colouring,
    Share,
    colour_categories,
    colour_numbers,
    describe_colouring,
    escape,
    fold,
    format_bytes,
    format_count,
    format_number,
    format_seconds,
    format_share,
    make_bars,
    make_legend,
    make_list,
    make_map,
    make_stack,
    make_table,
    nice_steps,
    place_points,
)

Report = Mapping[str, Any]

_FILES_SHOWN = 20
_PASSES = {
    "prepare": ("check and load", "c4"),
    "index": ("read and index", "c2"),
    "encode": ("encode", "c0"),
    "assemble": ("assemble", "c1"),
}


def render(report: Report) -> bytes:
    """The page of a report; a section whose numbers the report lacks is left out."""
    sections = [
        ("map", "Map", _draw_map(report)),
        ("texts", "Lengths", _draw_lengths(report)),
        ("speed", "Speed", _draw_speed(report)),
        ("rejects", "Rejects", _draw_rejects(report)),
        ("vectors", "Vectors", _draw_vectors(report)),
        ("input", "Input", _draw_inputs(report)),
        ("run", "The run", _draw_run(report)),
    ]
    drawn = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in drawn)
    body = "".join(
        f'<section id="{name}" aria-labelledby="{name}-title">{content}</section>'
        for name, _, content in drawn
    )
    return _wrap(
        report,
        f'<a class="skip" href="#main">Skip to the report</a>{_draw_head(report)}'
        f'<nav aria-label="Sections">{links}</nav>'
        f'<main id="main">{_draw_balance(report)}{body}</main>'
        "<footer>Made from report.json alone; "
        "<code>python -m pipeline.report</code> makes it again.</footer>"
        f'<script type="application/json" id="data">{embed_json(_map_data(report))}</script>',
    )


def render_safely(report: Report) -> bytes:
    """As `render`; a page that cannot be drawn says so, and costs nobody a night's vectors."""
    try:
        return render(report)
    except Exception as error:  # noqa: BLE001 - whatever it is, the commit matters more
        message = f"{type(error).__name__}: {error}"
        return _wrap(
            {},
            "<main><h1>This page could not be drawn</h1><p>The output is complete, and "
            f"report.json has all numbers. What went wrong: {escape(message)}</p></main>",
        )


def embed_json(value: Any) -> str:
    """JSON that may stand in a script element: nothing in it can end the element."""
    text = orjson.dumps(value).decode()
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _asset(name: str) -> str:
    folder = importlib.resources.files("transforms") / "data" / "report"
    return (folder / name).read_text(encoding="utf-8")


def _wrap(report: Report, body: str) -> bytes:
    style, script = _asset("page.css"), _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    title = _find(report, "expert", "name", default="run")
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)} – run report</title><style>{style}</style></head>"
        f"<body>{body}<script>{script}</script></body></html>\n"
    )
    return page.encode()


def _find(report: Report, *names: str, default: Any = None) -> Any:
    """A value by its path, or the default where it is null or absent."""
    found: Any = report
    for name in names:
        if not isinstance(found, Mapping) or found.get(name) is None:
            return default
        found = found[name]
    return found


def _plural(count: float, one: str, many: str | None = None) -> str:
    return f"{format_count(count)} {one if count == 1 else many or one + 's'}"


def _heading(name: str, title: str, finding: str, note: str = "") -> str:
    """A section's head: what it is about, and what it says; the finding is markup already."""
    about = f'<p class="note">{escape(note)}</p>' if note else ""
    return (
        f'<div class="side"><h2 id="{name}-title">{escape(title)}</h2>{about}</div>'
        f'<div class="body"><p class="finding">{finding}</p>'
    )


def _draw_head(report: Report) -> str:
    counts = _find(report, "counts", default={})
    config = _find(report, "config", default={})
    finished = str(_find(report, "time", "finished", default=""))
    when = finished[:16].replace("T", " ") + " UTC" if finished else ""
    handle = _find(report, "expert", "handle", default="an expert")
    width = _find(report, "expert", "width", default=0)
    wall = _find(report, "time", "wall_seconds")
    parts = [
        f"{format_count(width)} numbers each, from <b>{escape(handle)}</b>",
        f"{escape(config.get('pooling', '?'))} pooling"
        + (", length 1" if config.get("normalize") else ""),
    ]
    took = "" if wall is None else f", made in <b>{format_seconds(wall)}</b>"
    place = escape(config.get("output", ""))
    return (
        f'<header><p class="eyebrow">Run report{" · " + escape(when) if when else ""}</p>'
        f"<h1>{_plural(counts.get('vectors', 0), 'vector')}</h1>"
        f'<p class="lede">{", ".join(parts)}{took}.</p>'
        + (f'<p class="place"><code>{place}</code></p>' if place else "")
        + "</header>"
    )


def _draw_balance(report: Report) -> str:
    counts = _find(report, "counts")
    if not counts:
        return ""
    read, vectors = counts.get("rows_read", 0), counts.get("vectors", 0)
    resumed, reused = counts.get("rows_resumed", 0), counts.get("rows_reused", 0)
    rejects = sum(counts.get("rejects", {}).values())
    fresh = vectors - resumed - reused
    shares = [Share("encoded in this run", fresh, "c0", format_count(fresh))]
    if resumed:
        shares.append(Share("kept from an interrupted run", resumed, "c5", format_count(resumed)))
    if reused:
        shares.append(Share("taken over unchanged", reused, "c2", format_count(reused)))
    shares.append(Share("rejects", rejects, "c1", format_count(rejects)))
    total = (
        f'<p class="sum"><b>{format_count(read)}</b> rows read = '
        f"<b>{format_count(vectors)}</b> vectors + <b>{format_count(rejects)}</b> rejects</p>"
    )
    label = f"{read} rows read: {vectors} vectors and {rejects} rejects"
    bar = make_stack(shares, label=label)
    return f'<div class="balance">{total}{bar}</div>{_draw_figures(report)}'


def _draw_figures(report: Report) -> str:
    """The handful of numbers that people ask for first."""
    tokens, counts = _find(report, "tokens", default={}), _find(report, "counts", default={})
    encoded, padded = tokens.get("encoded", 0), tokens.get("padded", 0)
    speed = _find(report, "encoding", "tokens_per_second")
    peak = _find(report, "memory", "peak_bytes")
    figures = []
    if speed:
        figures.append((format_count(speed), "tokens a second", "while encoding"))
    if padded:
        share = format_share(padded - encoded, padded)
        figures.append((share, "padding", f"of {format_count(padded)} encoded positions"))
    cut, vectors = counts.get("truncated", 0), counts.get("vectors", 0)
    figures.append((format_share(cut, vectors), "texts cut", f"{format_count(cut)} at the limit"))
    size = _find(report, "output_bytes", default=0)
    files = _find(report, "output_files", default=0)
    figures.append((format_bytes(size), "output", _plural(files, "file")))
    if peak:
        processes = len(_find(report, "memory", "processes", default=[]))
        about = "of the one process" if processes == 1 else f"the most of {processes} processes"
        figures.append((format_bytes(peak), "peak memory", about))
    wall = _find(report, "time", "wall_seconds")
    if wall is not None:
        passes = {
            one["name"]: one["seconds"] for one in _find(report, "time", "passes", default=[])
        }
        about = f"{format_seconds(passes['encode'])} to encode" if "encode" in passes else ""
        figures.insert(0, (format_seconds(wall), "run time", about))
    items = "".join(
        f"<div><dd>{escape(value)}</dd><dt>{escape(name)}<span>{escape(about)}</span></dt></div>"
        for value, name, about in figures
    )
    return f'<dl class="figures">{items}</dl>'


# The map


def _colourings(report: Report) -> list[Colouring]:
    points = _find(report, "vectors", "map", default={})
    found = []
    for one in points.get("fields", []):
        paint = colour_categories if one["kind"] == "category" else colour_numbers
        found.append(paint(one["name"], one["values"]))
    found.append(colour_numbers("tokens", points.get("tokens", [])))
    found.append(colour_numbers("length of the vector", points.get("norm", [])))
    return found


def _map_data(report: Report) -> dict[str, Any]:
    points = _find(report, "vectors", "map")
    if not points or not points["x"]:
        return {}
    return {
        "points": place_points(points["x"], points["y"]),
        "id": points["id"],
        "text": points["text"],
        "tokens": points["tokens"],
        "norm": points["norm"],
        "colourings": [describe_colouring(one) for one in _colourings(report)],
    }


def _draw_map(report: Report) -> str:
    points = _find(report, "vectors", "map")
    if not points or not points["x"]:
        return ""
    rows, shown = _find(report, "vectors", "rows", default=0), len(points["x"])
    colourings = _colourings(report)
    explained = [float(share) for share in points.get("explained") or (0, 0)]
    every = "Every row" if shown == rows else f"{format_count(shown)} of {format_count(rows)} rows"
    finding = (
        f"{every}, placed by meaning. The plane shows <b>{format_share(sum(explained), 1)}</b> of "
        "how the vectors differ: rows far apart are unlike, rows close together may be."
    )
    options = "".join(
        f'<option value="{number}">{escape(one.name)}</option>'
        for number, one in enumerate(colourings)
    )
    places = place_points(points["x"], points["y"])
    drawing = make_map(places, colourings[0], label=f"Map of {shown} rows")
    return (
        _heading("map", "Map", finding, f"{points.get('method', 'PCA')}; evenly sampled rows.")
        + '<div class="map"><div class="frame">'
        + drawing
        + '</div><div class="panel"><label>Colour by '
        + f'<select id="map-by">{options}</select></label>{make_legend(colourings[0])}'
        + '<output id="map-read" aria-live="polite">Point at a dot to read its row.</output>'
        + '<p id="map-help" class="note">Keys: focus the map, then arrows go to the next row in '
        + "that direction, Home and End to the first and the last.</p></div></div></div>"
    )


# Texts


def _draw_lengths(report: Report) -> str:
    tokens = _find(report, "tokens", default={})
    histogram, quantiles = tokens.get("histogram"), tokens.get("quantiles")
    if not histogram or not quantiles:
        return ""
    limit, edges, rows = tokens["limit"], histogram["edges"], histogram["rows"]
    total, cut = sum(rows), _find(report, "counts", "truncated", default=0)
    finding = f"Half of the texts have at most <b>{_plural(quantiles['p50'], 'token')}</b>"
    finding += (
        f"; <b>{format_count(cut)}</b> ({format_share(cut, total)}) were cut at {limit}."
        if cut
        else f"; none was cut at {limit}."
    )
    titles = []
    for start, stop, count in zip(edges[:-1], edges[1:], rows, strict=True):
        span = f"{start}" if stop == start + 1 else f"{start}–{stop - 1}"
        titles.append(f"{span} tokens: {_plural(count, 'row')} ({format_share(count, total)})")
    at_limit = [number for number, edge in enumerate(edges[:-1]) if edge == limit]
    width = histogram["bar_tokens"]
    rest = [
        number
        for number, (start, stop) in enumerate(itertools.pairwise(edges))
        if stop - start > width
    ]
    regular = len(rows) - len(rest) - len(at_limit)
    chart = make_bars(
        Bars(
            values=rows,
            titles=titles,
            ticks=[
                ((value - 1) / width, format_count(value))
                for value in nice_steps(edges[regular])
                if (value - 1) / width < len(rows) - 1.5
            ],
            top=_plural(max(rows), "row"),
            label=f"Histogram of tokens a text, 1 to {quantiles['max']}",
            marked=frozenset(at_limit),
            faint=frozenset(rest),
            line=(at_limit[0], f"limit {limit}") if at_limit else None,
        )
    )
    facts = [
        (name, _plural(quantiles[key], "token"))
        for name, key in (("median", "p50"), ("95 % have at most", "p95"), ("longest", "max"))
    ]
    for over in tokens.get("over", []):
        name = f"over {over['tokens']} tokens"
        facts.append((name, f"{format_count(over['rows'])} ({format_share(over['rows'], total)})"))
    note = "Tokens a text, [CLS] and [SEP] included."
    if rest:
        note += f" The grey bar holds all of {edges[rest[0]]} to {edges[rest[0] + 1] - 1} tokens."
    return _heading("texts", "Lengths", finding, note) + chart + make_list(facts) + "</div>"


# Speed


def _draw_speed(report: Report) -> str:
    encoding, times = _find(report, "encoding", default={}), _find(report, "time", default={})
    passes, wall = times.get("passes", []), times.get("wall_seconds")
    if not passes and not encoding.get("batches"):
        return ""
    series = _find(report, "throughput")
    encoded = _find(report, "tokens", "encoded", default=0)
    finding = f"<b>{_plural(encoded, 'token')}</b> encoded"
    if encoding.get("tokens_per_second"):
        finding += f" at <b>{format_count(encoding['tokens_per_second'])}</b> a second"
    if wall:
        finding += f"; the whole run took <b>{format_seconds(wall)}</b>"
    note = "Tokens a second over the encode pass, then where the time went."
    content = _heading("speed", "Speed", finding + ".", note)
    if series:
        content += _draw_throughput(series)
    if passes:
        shares = [
            Share(
                _PASSES.get(one["name"], (one["name"], "c6"))[0],
                one["seconds"],
                _PASSES.get(one["name"], (one["name"], "c6"))[1],
                format_seconds(one["seconds"]),
            )
            for one in passes
        ]
        content += f"<h3>Time on the clock</h3>{make_stack(shares, label='Time by pass')}"
    return content + _draw_work(report) + "</div>"


def _draw_throughput(series: Mapping[str, Any]) -> str:
    seconds = series["bucket_seconds"]
    rates = [tokens / seconds for tokens in series["tokens"]]
    titles = [
        f"{format_seconds(number * seconds)} to {format_seconds((number + 1) * seconds)}: "
        f"{format_count(rate)} tokens a second"
        for number, rate in enumerate(rates)
    ]
    return make_bars(
        Bars(
            values=rates,
            titles=titles,
            ticks=[(0, "start"), (len(rates), format_seconds(len(rates) * seconds))],
            top=f"{format_count(max(rates))} tokens/s",
            label="Tokens a second over time",
            dense=True,
        )
    )


def _draw_work(report: Report) -> str:
    encoding, tokens = _find(report, "encoding", default={}), _find(report, "tokens", default={})
    encoded, padded = tokens.get("encoded", 0), tokens.get("padded", 0)
    work = [
        (name, encoding.get(key, 0.0))
        for name, key in (
            ("load the expert", "load_seconds"),
            ("tokenize", "tokenize_seconds"),
            ("encode", "encode_seconds"),
            ("write files", "assemble_seconds"),
        )
    ]
    content = ""
    if padded:
        shares = [
            Share("tokens", encoded, "c0", format_count(encoded)),
            Share("padding", padded - encoded, "c1", format_count(padded - encoded)),
        ]
        content += f"<h3>What the expert was fed</h3>{make_stack(shares, label='Padding')}"
    facts = [(name, format_seconds(seconds)) for name, seconds in work if seconds]
    loads, batches = encoding.get("expert_loads", 0), encoding.get("batches", 0)
    if loads:
        facts.append(("loads of the expert", format_count(loads)))
    if batches:
        rows = _find(report, "counts", "rows_encoded", default=0)
        facts.append(("batches", f"{format_count(batches)}, {rows / batches:,.1f} rows each"))
    if encoding.get("batches_halved"):
        facts.append(("batches halved", format_count(encoding["batches_halved"])))
    if facts:
        content += "<h3>Work, summed over workers</h3>" + make_list(facts)
    return content


# Rejects


def _draw_rejects(report: Report) -> str:
    reasons = _find(report, "counts", "rejects")
    if reasons is None:
        return ""
    read = _find(report, "counts", "rows_read", default=0)
    total = sum(reasons.values())
    if not total:
        return _heading("rejects", "Rejects", "None: every row has its vector.") + "</div>"
    finding = (
        f"<b>{format_count(total)}</b> of {format_count(read)} rows "
        f"({format_share(total, read)}) got no vector."
    )
    examples = _find(report, "reject_examples", default={})
    most = max(reasons.values())
    blocks = []
    for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
        bar = f'<div class="meter"><i style="width:{100 * count / most:.1f}%"></i></div>'
        listed = examples.get(reason, [])
        table = make_table(
            ["id", "where", "what"],
            [
                [
                    "–" if one["id"] is None else f"<code>{escape(one['id'])}</code>",
                    f"<code>{escape(one['file'])}</code> {_place(one)}",
                    escape(one["message"]),
                ]
                for one in listed
            ],
        )
        blocks.append(
            f'<div class="reason"><h3><code>{escape(reason)}</code> '
            f"<span>{format_count(count)}</span></h3>{bar}"
            + (fold(_plural(len(listed), "example"), table) if listed else "")
            + "</div>"
        )
    note = "Every reject stands in rejects/ with its raw row."
    return _heading("rejects", "Rejects", finding, note) + "".join(blocks) + "</div>"


def _place(example: Mapping[str, Any]) -> str:
    if example.get("line") is not None:
        return f"line {format_count(example['line'])}"
    return f"at {format_count(example['position'])}"


# Vectors


def _draw_vectors(report: Report) -> str:
    vectors = _find(report, "vectors")
    if not vectors or not vectors.get("rows"):
        return ""
    cosine, norms = vectors.get("mean_cosine"), vectors["norms"]
    finding = f"Lengths of {format_number(norms['min'])} to {format_number(norms['max'])}"
    if cosine is not None:
        finding += f"; two rows have a cosine of <b>{cosine:.3f}</b> on average"
    note = (
        "A high average cosine means that the directions crowd (anisotropy): compare rows by rank, "
        "not by a fixed threshold."
    )
    content = _heading("vectors", "Vectors", finding + ".", note)
    content += _draw_norms(norms) + _draw_dimensions(vectors) + _draw_pairs(vectors)
    return content + "</div>"


def _draw_norms(norms: Mapping[str, Any]) -> str:
    edges, rows = norms["histogram"]["edges"], norms["histogram"]["rows"]
    facts = [
        ("mean", format_number(norms["mean"])),
        ("standard deviation", format_number(norms["std"])),
        ("shortest", format_number(norms["min"])),
        ("longest", format_number(norms["max"])),
    ]
    if len(rows) < 3:  # one length, up to rounding: a chart would show nothing
        return f"<h3>Lengths of the vectors</h3>{make_list(facts)}"
    total = sum(rows)
    titles = [
        f"{format_number(start)} to {format_number(stop)}: {_plural(count, 'row')} "
        f"({format_share(count, total)})"
        for start, stop, count in zip(edges[:-1], edges[1:], rows, strict=True)
    ]
    step = max(1, len(rows) // 4)
    chart = make_bars(
        Bars(
            values=rows,
            titles=titles,
            ticks=[
                (number, f"{edges[number]:.3g}")
                for number in range(0, len(rows), step)
                if number == 0 or len(rows) - number >= step / 2
            ],
            top=_plural(max(rows), "row"),
            label="Histogram of the vectors' lengths",
        )
    )
    return f"<h3>Lengths of the vectors</h3>{chart}{make_list(facts)}"


def _draw_dimensions(vectors: Mapping[str, Any]) -> str:
    found = vectors["dimensions"]
    width, dead, large = vectors["width"], found["dead_count"], found["large_count"]
    lines = []
    if dead:
        names = ", ".join(map(str, found["dead"])) + (" …" if dead > len(found["dead"]) else "")
        verb = "is the same" if dead == 1 else "are the same"
        lines.append(f"<b>{_plural(dead, 'dimension')}</b> {verb} in every sampled row: {names}.")
    if large:
        verb = "is" if large == 1 else "are"
        lines.append(
            f"<b>{_plural(large, 'dimension')}</b> {verb} over {found['large_ratio']:g} times as "
            f"large as the usual, and {verb} <b>{format_share(found['large_share'], 1)}</b> of the "
            "squared lengths."
        )
    if not lines:
        lines.append(f"All {format_count(width)} vary, and none drowns the others.")
    content = "<h3>Dimensions</h3>" + "".join(f"<p>{line}</p>" for line in lines)
    if not large:
        return content
    rows = [
        [
            str(one["dimension"]),
            format_number(one["rms"]),
            f"{one['times_median']:.1f} ×",
            format_number(one["mean"]),
            f"{format_number(one['min'])} to {format_number(one['max'])}",
        ]
        for one in found["large"]
    ]
    headings = ["dimension", "root mean square", "of the median", "mean", "range"]
    return content + make_table(headings, rows, numeric=(0, 1, 2, 3, 4))


def _draw_pairs(vectors: Mapping[str, Any]) -> str:
    found = vectors["near_duplicates"]
    examples, least = found["examples"], found["cosine"]
    content = "<h3>Near duplicates</h3>"
    rows = format_count(vectors["sample_rows"])
    if not examples:
        return content + f"<p>No two of {rows} sampled rows have a cosine of {least:g} or more.</p>"
    content += (
        f"<p><b>{_plural(found['pairs'], 'pair')}</b> among {rows} sampled rows have a cosine of "
        f"{least:g} or more{'; the closest:' if found['pairs'] > len(examples) else '.'}</p>"
    )
    items = []
    for one in examples:
        texts = one["texts"] or ["", ""]
        sides = "".join(
            f"<p><code>{escape(row_id)}</code> {escape(text)}</p>"
            for row_id, text in zip(one["ids"], texts, strict=True)
        )
        same = ' <span class="tag">same text</span>' if one["same_text"] else ""
        items.append(f"<li><b>{one['cosine']:.4f}</b><div>{sides}{same}</div></li>")
    shown = "".join(items[:5])
    more = fold(f"{len(items) - 5} more", f'<ol class="pairs">{"".join(items[5:])}</ol>')
    return content + f'<ol class="pairs">{shown}</ol>' + (more if len(items) > 5 else "")


# Where it came from


def _draw_inputs(report: Report) -> str:
    inputs = _find(report, "inputs")
    if not inputs:
        return ""
    total = len(inputs) + _find(report, "inputs_not_listed", default=0)
    size = _find(report, "text_bytes", default=0)
    finding = f"<b>{_plural(total, 'file')}</b>, {format_bytes(size)} of text"
    reused = _find(report, "reused")
    if reused:
        finding += f"; unchanged rows from <code>{escape(reused['output'])}</code>"
    headings = ["file", "rows read", "vectors", "rejects"]
    rows = [
        [
            f"<code>{escape(one['path'])}</code>",
            *(format_count(one[key]) for key in ("rows_read", "vectors", "rejects")),
        ]
        for one in inputs
    ]
    content = _heading("input", "Input", finding + ".")
    content += make_table(headings, rows[:_FILES_SHOWN], numeric=(1, 2, 3))
    if rows[_FILES_SHOWN:]:
        rest = make_table(headings, rows[_FILES_SHOWN:], numeric=(1, 2, 3))
        content += fold(f"{_plural(len(rows) - _FILES_SHOWN, 'more file')}", rest)
    if total > len(inputs):
        content += f"<p>{format_count(total - len(inputs))} more are not listed.</p>"
    compared = _find(report, "ids_against_reused")
    if compared:
        pairs = [(name, format_count(count)) for name, count in compared.items()]
        content += "<h3>Ids against the earlier output</h3>" + make_list(pairs)
    return content + "</div>"


def _draw_run(report: Report) -> str:
    versions, config = _find(report, "versions", default={}), _find(report, "config", default={})
    if not versions and not config:
        return ""
    run = _find(report, "run", default={})
    content = _heading("run", "The run", "The command, and what ran it.")
    if run.get("command"):
        content += f'<pre tabindex="0"><code>{escape(_fold_command(run["command"]))}</code></pre>'
    facts = [
        (name.replace("_", " "), f"<code>{escape(value)}</code>")
        for name, value in run.items()
        if name != "command" and value is not None
    ]
    facts += [
        ("expert", f"<code>{escape(_find(report, 'expert', 'handle', default='–'))}</code>"),
        (
            "preprocessor",
            f"<code>{escape(_find(report, 'expert', 'preprocessor', default='–'))}</code>",
        ),
        ("fingerprint", f"<code>{escape(_find(report, 'fingerprint', default='–'))}</code>"),
        ("started", escape(_find(report, "time", "started", default="–"))),
        ("finished", escape(_find(report, "time", "finished", default="–"))),
    ]
    content += make_list(facts) + "<h3>Versions</h3>"
    content += make_list(
        (name.replace("_", " "), escape("–" if value is None else value))
        for name, value in versions.items()
    )
    processes = _find(report, "memory", "processes", default=[])
    if len(processes) > 1:
        table = make_table(
            ["process", "peak memory"],
            [[escape(one["process"]), format_bytes(one["peak_bytes"])] for one in processes],
            numeric=(1,),
        )
        content += fold("Memory by process", table)
    settings = make_table(
        ["setting", "value"],
        [
            [f"<code>{escape(name)}</code>", f"<code>{escape(_setting(value))}</code>"]
            for name, value in config.items()
        ],
    )
    return content + (fold("All settings", settings) if config else "") + "</div>"


def _fold_command(command: str) -> str:
    """A command with a flag a line, which a shell still takes."""
    words = [shlex.quote(word) for word in shlex.split(command)]
    start = next(
        (at for at, word in enumerate(words) if word.lstrip("'").startswith("--")), len(words)
    )
    return " \\\n    ".join([" ".join(words[:start]), *words[start:]])


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
