"""Static report of result files: sortable tables, plots with the Pareto front, a page for every method.

    foveate report results/*.json -o report

Everything stands in the folder: no script, style or font comes from elsewhere, and the pages open from a disk.
"""

from foveate.report.building import build
from foveate.report.results import Results, Source, read

__all__ = ["Results", "Source", "build", "read"]
