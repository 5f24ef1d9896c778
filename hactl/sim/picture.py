"""picture: a run as SVG: who was in pf over time, and behind it what was the matter.

A lane for each member: a bar while it is in pf, a pale band while its node fails, hatched where
both meet, for that is traffic that met a failing member.  What happens is listed below, with its
times, and numbered where it begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from hactl.core.units import Duration, span
from hactl.sim import truth as truth_
from hactl.sim.ledger import Layout
from hactl.sim.truth import FAULTS, Event
from hactl.sim.world import Cluster, Run, Stretch

WIDTH, LEFT, RIGHT = 1000, 150, 20
LANE, BAR, HEAD = 26, 14, 64
LINE, LISTED = 16, 40  # of the list below
ROWS = 3  # of numbers above it
LETTERS = 20  # of a name that have room on the left
STYLE = """
text { font: 12px sans-serif; fill: #222 }
.title { font-size: 15px; font-weight: bold }
.dim { fill: #666; font-size: 11px }
.in { fill: #2a7f9e }
.bad { fill: #f3c9c2 }
.hit { fill: url(#hatch) }
.empty { fill: #c0392b }
.deed { stroke: #555; stroke-width: 1; stroke-dasharray: 2 3 }
.grid { stroke: #ddd; stroke-width: 1 }
@media (prefers-color-scheme: dark) {
  svg { background: #1b1d1f } text { fill: #ddd } .dim { fill: #999 }
  .bad { fill: #5a2d27 } .grid { stroke: #333 } .deed { stroke: #aaa }
}
"""
HATCH = (
    '<pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse"'
    ' patternTransform="rotate(45)"><rect width="6" height="6" fill="#2a7f9e"/>'
    '<rect width="3" height="6" fill="#c0392b"/></pattern>'
)


def picture(
    title: str, what: Cluster, events: Sequence[Event], runs: Sequence[tuple[str, Run]]
) -> str:
    """Draw runs of one schedule, one below the other, each with its name."""
    duration = runs[0][1].seconds
    body: list[str] = []
    y = HEAD
    for name, run in runs:
        for layout in what.layouts:
            body.append(_text(8, y + 12, f"{name}: {layout.name}", "title"))
            y += 22
            body += _lanes(layout, what, events, run, y)
            y += LANE * len(layout.seats) + 16
    deeds = [*_deeds(events, duration, y)]
    listed = [*_list(events, duration, y + LINE + 10 * ROWS)]
    height = y + LINE * (len(listed) + 1) + 10 * ROWS
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        f' width="{WIDTH}" height="{height}" role="img">',
        f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", f"<defs>{HATCH}</defs>",
        _text(8, 20, title, "title"),
        _text(8, 38, "bar: in pf; band: its node fails; hatched: both; red: nobody is in pf", "dim"),
        *_grid(duration, y), *deeds, *body, *listed, "</svg>", "",
    ])  # fmt: skip


def _x(at: float, duration: float) -> float:
    return round(LEFT + (WIDTH - LEFT - RIGHT) * min(at, duration) / duration, 2)


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    clean = escape("".join(c if c.isprintable() else "?" for c in text))
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{clean}</text>'


def _box(first: float, last: float, duration: float, y: float, height: float, kind: str) -> str:
    x = _x(first, duration)
    width = max(0.6, round(_x(last, duration) - x, 2))
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" class="{kind}"/>'


def _grid(duration: float, bottom: float) -> Iterator[str]:
    """Draw a line with its time about every tenth of the run."""
    steps = (10, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)
    step = next((s for s in steps if duration / s <= 10), duration / 10)
    at = 0.0
    while at <= duration:
        x = _x(at, duration)
        yield f'<line x1="{x}" y1="{HEAD - 6}" x2="{x}" y2="{bottom}" class="grid"/>'
        yield _text(x, HEAD - 10, span(at) if at else "0", "dim", "middle")
        at += step


def _deeds(events: Sequence[Event], duration: float, bottom: float) -> Iterator[str]:
    """Draw where each event begins the first time, by its number, and a line for each deed."""
    free = [0.0] * ROWS  # where there is room
    for edge in truth_.edges(events, duration):
        event = events[edge.number]
        x = _x(edge.at, duration)
        if edge.begins and event.do not in FAULTS:
            about = escape(f"{event} at {Duration(round(edge.at, 1))}")
            yield (
                f'<line x1="{x}" y1="{HEAD}" x2="{x}" y2="{bottom}" class="deed">'
                f"<title>{about}</title></line>"
            )
        if edge.begins and not edge.turn and edge.number < LISTED:
            row = next((n for n, end in enumerate(free) if end <= x), ROWS - 1)
            free[row] = x + 8 * len(str(edge.number + 1)) + 2
            yield _text(x, bottom + 4 + 10 * row, str(edge.number + 1), "dim", "middle")


def _list(events: Sequence[Event], duration: float, top: float) -> Iterator[str]:
    """Write each event with its times."""
    for number, event in enumerate(events[:LISTED]):
        if event.at >= duration:
            continue
        text = f"{number + 1}  {event}, at {Duration(round(event.at, 1))}"
        text += f" for {Duration(event.lasts)}" if event.lasts is not None else ""
        text += f", every {Duration(event.every)}" if event.every is not None else ""
        text += f", until {Duration(event.until)}" if event.until is not None else ""
        yield _text(8, top + LINE * number, text, "dim")
    if len(events) > LISTED:
        more = f"and {len(events) - LISTED} more"
        yield _text(8, top + LINE * LISTED, more, "dim")


def spans(
    stretches: Sequence[Stretch], layout: Layout, end: float
) -> Iterator[tuple[Stretch, float]]:
    """Yield each stretch of a service with its end."""
    mine = [s for s in stretches if s.service == layout.name]
    for here, there in zip(mine, [*mine[1:], None], strict=False):
        yield here, end if there is None else there.at


def bad_spans(
    layout: Layout, what: Cluster, events: Sequence[Event], duration: float, node: str
) -> Iterator[tuple[float, float]]:
    """Yield when a node failed what a service requires."""
    truth = truth_.Truth(events)
    since: float | None = None
    for edge in truth_.edges(events, duration):
        truth.turn(edge)
        bad = truth.bad(node, layout.require, what.timeouts) > 0
        if bad and since is None:
            since = edge.at
        elif not bad and since is not None:
            yield since, edge.at
            since = None
    if since is not None:
        yield since, duration


def _fitting(name: str, room: int) -> str:
    """Return a name without its domain, and without its middle, if there is no room for it."""
    name = name if len(name) <= room else name.partition(".")[0]
    half = (room - 3) // 2
    return name if len(name) <= room else f"{name[:half]}...{name[-half:]}"


def _lanes(
    layout: Layout, what: Cluster, events: Sequence[Event], run: Run, top: float
) -> Iterator[str]:
    end = run.seconds
    for number, seat in enumerate(layout.seats):
        y = top + LANE * number
        where = " (backup)" if seat.member.table else ""
        name = _fitting(seat.node, LETTERS - len(where))
        yield _text(LEFT - 8, y + BAR, f"{name}{where}", "", "end")
        bad = [*bad_spans(layout, what, events, end, seat.node)]
        for first, last in bad:
            yield _box(first, last, end, y - 2, LANE - 4, "bad")
        for stretch, last in spans(run.stretches, layout, end):
            if seat.member not in stretch.serving:
                continue
            yield _box(stretch.at, last, end, y + 3, BAR, "in")
            for begin, stop in bad:
                if begin < last and stop > stretch.at:
                    yield _box(max(begin, stretch.at), min(stop, last), end, y + 3, BAR, "hit")
    bottom = top + LANE * len(layout.seats)
    for stretch, last in spans(run.stretches, layout, end):
        if not stretch.serving:
            yield _box(stretch.at, last, end, bottom, 5, "empty")
