"""Tables in Markdown, for the terminal as for the documentation. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["NONE", "fact_list", "short", "table"]

NONE = "–"


def fact_list(facts: Mapping[str, str]) -> str:
    """What is known of a run."""
    return "".join(f"- {name}: {value}\n" for name, value in facts.items())


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1) -> str:
    """Columns of one width, to be read unrendered too; the first `texts` to the left, the numbers after them to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rules = ["-" * width if n < texts else "-" * (width - 1) + ":" for n, width in enumerate(widths)]
    lines = []
    for row in (header, rules, *rows):
        padded = [*map(str.ljust, row[:texts], widths), *map(str.rjust, row[texts:], widths[texts:])]
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)


def short(value: float) -> str:
    """Three digits at least."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
