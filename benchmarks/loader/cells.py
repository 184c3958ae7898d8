"""The cells: what is measured on which sides, and what is wanted. The first side of a cell is the one that is judged."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from benchmarks.loader.sets import BIG_TOKENS, BLOBS, SMALL, TOKENS, SampleSet

__all__ = ["BARS", "CELLS", "FIRST_BATCH_S", "Bar", "Cell", "Kind", "SideSpec"]


class Kind(Enum):
    """What a side does in its turn; the value is the command of `benchmarks.loader.turns`."""

    WARM = "warm"
    COLD = "cold"
    FIRST = "first"
    RESUME = "resume"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class SideSpec:
    """A side: its name in reports, module and class, and whether it lives in the peers' environment or is a limit."""

    name: str
    module: str
    class_name: str
    is_peer: bool = False
    is_limit: bool = False


FOREBAY: Final = SideSpec(name="Forebay", module="forebay", class_name="Forebay")
VIEWS: Final = SideSpec(name="Forebay, zero_copy", module="forebay", class_name="ForebayViews")
NARROW: Final = SideSpec(name="Forebay, 64 lanes of 256 KiB blocks", module="forebay", class_name="ForebayNarrow")
LITDATA: Final = SideSpec(name="LitData", module="litdata", class_name="LitData", is_peer=True)
MOSAIC: Final = SideSpec(name="MosaicML Streaming", module="mosaic", class_name="Mosaic", is_peer=True)
WEBDATASET: Final = SideSpec(name="WebDataset", module="webdataset", class_name="WebDataset", is_peer=True)
HUGGING_FACE: Final = SideSpec(name="Hugging Face datasets", module="huggingface", class_name="HuggingFace", is_peer=True)
LANCE: Final = SideSpec(name="LanceDB", module="lance", class_name="Lance", is_peer=True)
GATHER: Final = SideSpec(name="gather alone", module="limits", class_name="Gather", is_limit=True)
ZSTD: Final = SideSpec(name="zstd alone, one thread", module="limits", class_name="Zstd", is_limit=True)

PEERS: Final = (LITDATA, MOSAIC, WEBDATASET, HUGGING_FACE, LANCE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One thing that is measured.

    Attributes
    ----------
    singly : bool
        Single samples instead of batches.
    part : float
        Where `RESUME` begins.
    """

    name: str
    kind: Kind
    chosen: SampleSet
    sides: tuple[SideSpec, ...]
    singly: bool = False
    part: float = 0.0

    @property
    def compressed(self) -> bool:
        """Whether the data are compressed: where they are remote. Local ones are as fast to read as a side can have them."""
        return self.kind is Kind.COLD

    @property
    def in_seconds(self) -> bool:
        """Whether figures are seconds, and less is better."""
        return self.kind in (Kind.FIRST, Kind.RESUME)


def _warm(chosen: SampleSet, *limits: SideSpec, forebay: tuple[SideSpec, ...] = (FOREBAY,)) -> Cell:
    name = f"{chosen.name}, warm, batches of {chosen.batch_size}"
    return Cell(name=name, kind=Kind.WARM, chosen=chosen, sides=(*forebay, *PEERS, *limits))


def _singly(chosen: SampleSet, *, forebay: tuple[SideSpec, ...] = (FOREBAY,)) -> Cell:
    name = f"{chosen.name}, warm, sample by sample"
    return Cell(name=name, kind=Kind.WARM, chosen=chosen, sides=(*forebay, *PEERS), singly=True)


def _cold(chosen: SampleSet, *limits: SideSpec) -> Cell:
    sides = (FOREBAY, LITDATA, MOSAIC, WEBDATASET, HUGGING_FACE, *limits)
    return Cell(name=f"{chosen.name}, cold, from zstd", kind=Kind.COLD, chosen=chosen, sides=sides)


_WITH_STATE = (FOREBAY, LITDATA, MOSAIC)

CELLS: Final = (
    _warm(TOKENS, GATHER),
    _warm(BLOBS, forebay=(VIEWS, FOREBAY)),
    _warm(SMALL, GATHER),
    _singly(TOKENS),
    _singly(BLOBS, forebay=(VIEWS, FOREBAY)),
    _singly(SMALL),
    _cold(TOKENS, ZSTD),
    _cold(BLOBS),
    Cell(name="first batch of 4 GiB", kind=Kind.FIRST, chosen=BIG_TOKENS, sides=_WITH_STATE),
    Cell(name="resume at 0 %", kind=Kind.RESUME, chosen=TOKENS, sides=_WITH_STATE),
    Cell(name="resume at 90 %", kind=Kind.RESUME, chosen=TOKENS, sides=_WITH_STATE, part=0.9),
    Cell(name="4 GiB of tokens, warm, batches of 64", kind=Kind.WARM, chosen=BIG_TOKENS, sides=(FOREBAY, LITDATA)),
    Cell(name="memory, 164 MB", kind=Kind.MEMORY, chosen=TOKENS, sides=(NARROW,)),
    Cell(name="memory, 4 GiB", kind=Kind.MEMORY, chosen=BIG_TOKENS, sides=(NARROW,)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """In `cell`, Forebay is to be at least `wanted` times as fast as the best peer, or as the side that is named."""

    cell: str
    wanted: float
    other: str | None = None


BARS: Final = (
    Bar(cell=CELLS[0].name, wanted=8.0),
    Bar(cell=CELLS[1].name, wanted=2.0),
    Bar(cell=CELLS[2].name, wanted=30.0),
    *(Bar(cell=cell.name, wanted=1.0) for cell in CELLS[3:6]),
    Bar(cell=CELLS[6].name, wanted=1.0),
    Bar(cell=CELLS[6].name, wanted=0.9, other=ZSTD.name),
    Bar(cell=CELLS[7].name, wanted=1.0),
    Bar(cell=CELLS[8].name, wanted=1.0),
    Bar(cell=CELLS[9].name, wanted=1.0),
    Bar(cell=CELLS[10].name, wanted=1.0),
)
FIRST_BATCH_S: Final = 0.2
