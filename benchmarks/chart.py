"""A chart of how many times as fast Forebay is as each side beside it: bars from 1x to both directions, in SVG. Pure.

The scale is logarithmic, so that twice as fast and half as fast are bars of one length. A dark notch shows what is wanted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Group", "Row", "chart"]

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 934, 284, 130, 64, 44
_ROW, _BAR, _GROUP = 22, 13, 30  # heights in pixels
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
_INK, _QUIET, _GRID = "#1f2933", "#66727f", "#e3e8ed"
_FASTER, _SLOWER, _LIMIT = "#2a7f9e", "#d9822b", "#aab4be"
_FONT = "font-family='Helvetica, Arial, sans-serif'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One side: how many times as fast Forebay is, what is wanted, and whether the side is a limit of the machine."""

    label: str
    ratio: float
    wanted: float | None
    beside_limit: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The sides of one cell."""

    title: str
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scale:
    """Ratios to pixels from the left."""

    least: float
    most: float

    def x(self, ratio: float) -> float:
        share = math.log(ratio / self.least) / math.log(self.most / self.least)
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)

    @property
    def ticks(self) -> list[float]:
        return [tick for tick in _TICKS if self.least <= tick <= self.most]


def chart(groups: Sequence[Group], *, subtitle: str) -> str:
    """The SVG."""
    scale = _scale([row for group in groups for row in group.rows])
    height = _TOP + sum(_GROUP + _ROW * len(group.rows) for group in groups) + _BOTTOM
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{_WIDTH}' height='{height}' viewBox='0 0 {_WIDTH} {height}' {_FONT}>",
        f"<rect width='{_WIDTH}' height='{height}' fill='white'/>",
        _text(16, 26, "How many times as fast Forebay is", size=17, weight="bold"),
        _text(16, 46, subtitle, size=12, fill=_QUIET),
        *_grid(scale, height),
    ]
    y = _TOP
    for group in groups:
        parts.append(_text(16, y + 20, group.title, size=12, weight="bold"))
        y += _GROUP
        for row in group.rows:
            parts += _row(row, scale, y)
            y += _ROW
    return "\n".join([*parts, *_legend(height), "</svg>", ""])


def _scale(rows: Sequence[Row]) -> _Scale:
    """From the last tick below all to the first above all; 0.5 to 2 at least."""
    values = [0.5, 2.0, *(row.ratio for row in rows), *(row.wanted for row in rows if row.wanted)]
    least = max((tick for tick in _TICKS if tick <= min(values)), default=min(values))
    most = min((tick for tick in _TICKS if tick >= max(values)), default=max(values))
    return _Scale(least=least, most=most)


def _grid(scale: _Scale, height: int) -> Iterator[str]:
    for tick in scale.ticks:
        x, one = scale.x(tick), tick == 1
        yield (
            f"<line x1='{x}' x2='{x}' y1='{_TOP}' y2='{height - _BOTTOM + 4}' "
            f"stroke='{_QUIET if one else _GRID}' stroke-width='{1.5 if one else 1}'/>"
        )
        yield _text(x, height - _BOTTOM + 18, f"{tick:g}x", size=11, fill=_QUIET, anchor="middle")


def _row(row: Row, scale: _Scale, y: int) -> Iterator[str]:
    one, end, top = scale.x(1), scale.x(row.ratio), y + (_ROW - _BAR) / 2
    baseline = y + _ROW / 2 + 4
    fill = _LIMIT if row.beside_limit else _FASTER if row.ratio >= 1 else _SLOWER
    yield _text(_LEFT - 12, baseline, row.label, size=12, anchor="end")
    yield f"<rect x='{min(one, end)}' y='{top}' width='{max(1.0, abs(end - one)):.1f}' height='{_BAR}' rx='2' fill='{fill}'/>"
    label = f"{row.ratio:.2f}x" if row.ratio < 10 else f"{row.ratio:.0f}x"
    yield _text(_WIDTH - 76, baseline, label, size=12, weight="bold", anchor="end")
    if row.wanted is not None:
        x = scale.x(row.wanted)
        yield f"<line x1='{x}' x2='{x}' y1='{top - 3}' y2='{top + _BAR + 3}' stroke='{_INK}' stroke-width='2.5'/>"
        yield _text(_WIDTH - 70, baseline, f"of {row.wanted:g}x", size=12, fill=_QUIET)


def _legend(height: int) -> Iterator[str]:
    x = 16
    for fill, words in ((_FASTER, "faster"), (_SLOWER, "slower"), (_LIMIT, "beside a limit of the machine"), (_INK, "wanted")):
        width = 3 if fill == _INK else 12
        yield f"<rect x='{x}' y='{height - 20}' width='{width}' height='12' rx='1' fill='{fill}'/>"
        yield _text(x + width + 6, height - 10, words, size=11, fill=_QUIET)
        x += width + 26 + 6 * len(words)


def _text(x: float, y: float, text: str, *, size: int, fill: str = _INK, weight: str = "normal", anchor: str = "start") -> str:
    style = f"font-size='{size}' font-weight='{weight}' fill='{fill}' text-anchor='{anchor}'"
    return f"<text x='{x}' y='{y}' {style}>{escape(text)}</text>"
