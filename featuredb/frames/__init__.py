"""Tables in and tables out: the only package that imports pandas and Arrow, and those only where used."""

from featuredb.frames.convert import Converted, RowProblems, as_column, as_us
from featuredb.frames.read import Frame, TableInput, concat_natives, open_table

__all__ = ["Converted", "Frame", "RowProblems", "TableInput", "as_column", "as_us", "concat_natives", "open_table"]
