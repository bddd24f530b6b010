"""Tables in and tables out: the only package that imports pandas and Arrow, and those only where used."""

from featuredb.frames.convert import Converted, RowProblems, as_column, as_us
from featuredb.frames.read import Frame, TableInput, detached, open_table

__all__ = ["Converted", "Frame", "RowProblems", "TableInput", "as_column", "as_us", "detached", "open_table"]
