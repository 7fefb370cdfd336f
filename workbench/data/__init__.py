"""Data: the kinds of rows, loading and checking them, rankings as pairs, and splits by prompt."""

from workbench.data.findings import Report
from workbench.data.formats import KINDS, Kind, detect_kind, is_conversational
from workbench.data.loading import Loaded, load, splits_of
from workbench.data.parts import Parts, load_parts
from workbench.data.rankings import Expanded, expand
from workbench.data.splits import group_key, split_by_prompt
from workbench.data.spool import Mapped, Spool, as_dataset

__all__ = [
    "KINDS",
    "Expanded",
    "Kind",
    "Loaded",
    "Mapped",
    "Parts",
    "Report",
    "Spool",
    "as_dataset",
    "detect_kind",
    "expand",
    "group_key",
    "is_conversational",
    "load",
    "load_parts",
    "split_by_prompt",
    "splits_of",
]
