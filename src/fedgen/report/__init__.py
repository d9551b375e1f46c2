"""A run as one page that explains itself, and several runs side by side. Matplotlib is needed here and nowhere else."""

from fedgen.report.many import compare
from fedgen.report.one import write

__all__ = ["compare", "write"]
