"""Complete programs that show what Forebay is for; each runs as it stands."""

from __future__ import annotations
