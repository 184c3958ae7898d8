"""The rows of the datasets in this folder. It needs numpy alone, as the environments that write them have."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["NUM_ROWS", "rows"]

NUM_ROWS = 7


def rows() -> list[dict[str, Any]]:
    """Numbers, texts, bytes, arrays of one shape and of many, and JSON."""
    return [
        {
            "id": number,
            "score": number / 3,
            "flag": number % 2 == 0,
            "text": f"zeile {number} – ü",
            "blob": bytes([number]) * number,
            "small": number + 200,
            "tokens": (np.arange(8) * 1000 * number % 65521).astype(np.uint16),
            "matrix": np.arange(6, dtype=np.float32).reshape(2, 3) + number,
            "ragged": np.arange(number % 3 + 1, dtype=np.int32),
            "extra": {"k": [number, None, {"x": 1.5}], "ü": "ö"},
        }
        for number in range(NUM_ROWS)
    ]
