"""A plan is one TOML file: everything a run depends on. Read strictly, refused with a reason, written back resolved."""

from fedgen.plan.agree import agree
from fedgen.plan.parts import SECTIONS, TABLES, Adapter, Measure, Plan, Quality, kind_of
from fedgen.plan.toml import read, toml_of, wish_of, write

__all__ = [
    "SECTIONS",
    "TABLES",
    "Adapter",
    "Measure",
    "Plan",
    "Quality",
    "agree",
    "kind_of",
    "read",
    "toml_of",
    "wish_of",
    "write",
]
