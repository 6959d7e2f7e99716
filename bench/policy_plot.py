"""Small multiples of curves with error bars, written as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

COLOURS = {"deadline": "#0b6e4f", "greedy": "#c8553d", "static": "#6c757d"}
WIDTH, HEIGHT, LEFT, TOP, GAP = 190, 130, 46, 40, 34


@dataclass(frozen=True)
class Curve:
    """Points of (x, y, deviation of y)."""

    name: str
    points: list[tuple[float, float, float]]


@dataclass(frozen=True)
class Panel:
    """Curves on common axes; y starts at 0."""

    title: str
    unit: str
    curves: list[Curve]

    @property
    def top(self) -> float:
        """The highest y that is drawn."""
        return 1.05 * max((y + spread for curve in self.curves for _, y, spread in curve.points), default=1.0)

    @property
    def right(self) -> float:
        """The highest x that is drawn."""
        return max((x for curve in self.curves for x, _, _ in curve.points), default=1.0)


def write_plot(rows: Sequence[Sequence[Panel]], file: Path) -> None:
    """Draw rows of panels, a legend above."""
    n_columns = max(len(row) for row in rows)
    width = LEFT + n_columns * (WIDTH + GAP)
    height = TOP + len(rows) * (HEIGHT + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-size="10">',
        "<style>text { font-family: sans-serif }</style>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        *_legend(rows[0][0].curves),
    ]
    for i, row in enumerate(rows):
        for j, panel in enumerate(row):
            x, y = LEFT + j * (WIDTH + GAP), TOP + i * (HEIGHT + GAP)
            parts += [f'<g transform="translate({x},{y})">', *_panel(panel), "</g>"]
    file.write_text("\n".join([*parts, "</svg>"]) + "\n")


def _legend(curves: Sequence[Curve]) -> Iterator[str]:
    for i, curve in enumerate(curves):
        x = LEFT + 90 * i
        yield f'<line x1="{x}" y1="12" x2="{x + 20}" y2="12" stroke="{_colour(curve)}" stroke-width="2"/>'
        yield f'<text x="{x + 25}" y="15">{escape(curve.name)}</text>'


def _panel(panel: Panel) -> Iterator[str]:
    title = escape(f"{panel.title}: {panel.unit}")
    yield f'<rect width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#adb5bd"/>'
    yield f'<text x="0" y="-4">{title}</text>'
    for share in (0.0, 0.5, 1.0):
        y = HEIGHT * (1 - share)
        yield f'<text x="-4" y="{y + 3:.0f}" text-anchor="end">{_number(share * panel.top)}</text>'
    for x in sorted({x for curve in panel.curves for x, _, _ in curve.points}):
        place = WIDTH * x / panel.right
        yield f'<text x="{place:.0f}" y="{HEIGHT + 12}" text-anchor="middle">{x:g}</text>'
    for curve in panel.curves:
        yield from _curve(panel, curve)


def _curve(panel: Panel, curve: Curve) -> Iterator[str]:
    colour = _colour(curve)
    places = [
        (WIDTH * x / panel.right, _height(y, panel), _height(y + spread, panel), _height(y - spread, panel))
        for x, y, spread in curve.points
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in places)
    yield f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.8"/>'
    bars = "".join(f"M{x:.1f} {high:.1f}V{low:.1f}" for x, _, high, low in places)
    yield f'<path d="{bars}" stroke="{colour}" stroke-width="0.8" opacity="0.7"/>'


def _height(y: float, panel: Panel) -> float:
    return HEIGHT * (1 - max(0.0, y) / (panel.top or 1.0))


def _colour(curve: Curve) -> str:
    return COLOURS.get(curve.name, "#000000")


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 10 or value == 0 else f"{value:.1f}"
