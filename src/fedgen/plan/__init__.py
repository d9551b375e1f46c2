"""A plan is one TOML file: everything a run depends on. Read strictly, refused with a reason, written back resolved."""

from fedgen.plan.agree import agree
from fedgen.plan.parts import SECTIONS, TABLES, Adapter, Fleet, Measure, Plan, Quality, Ray, kind_of
from fedgen.plan.toml import load, part_of, read, toml_of, value_of, wish_of, write

__all__ = [
    "SECTIONS",
    "TABLES",
    "Adapter",
    "Fleet",
    "Measure",
    "Plan",
    "Quality",
    "Ray",
    "agree",
    "kind_of",
    "load",
    "part_of",
    "read",
    "toml_of",
    "value_of",
    "wish_of",
    "write",
]
