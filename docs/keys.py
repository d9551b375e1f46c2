"""Write the tables of all keys of a plan into docs/plan.md, from the parts themselves.

python docs/keys.py
"""

import dataclasses
import typing
from pathlib import Path
from typing import Any

from fedgen.plan import SECTIONS, TABLES, Plan, toml_of, wish_of

PAGE = Path(__file__).parent / "plan.md"
MARK = "<!-- from here on written by docs/keys.py -->\n"


def wish(hint: Any) -> str:
    """What a key takes, in words."""
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(f"`{toml_of(choice)}`" for choice in typing.get_args(hint))
    return wish_of(hint)


def table(part: type[Any]) -> list[str]:
    """One line a key."""
    hints = typing.get_type_hints(part, include_extras=True)
    spots = dataclasses.fields(part)
    if not spots:
        return ["No keys.", ""]
    rows = [
        f"| `{spot.name}` | {wish(hints[spot.name])} | "
        f"{'must be said' if spot.default is dataclasses.MISSING else f'`{toml_of(spot.default)}`'} |"
        for spot in spots
    ]
    return ["| key | takes | default |", "|---|---|---|", *rows, ""]


def text() -> str:
    """Every section, every kind, every key."""
    hints = typing.get_type_hints(Plan, include_extras=True)
    top = [spot for spot in dataclasses.fields(Plan) if spot.name not in TABLES and spot.name not in SECTIONS]
    rows = [f"| `{spot.name}` | {wish(hints[spot.name])} | `{toml_of(spot.default)}` |" for spot in top]
    lines = ["## The top of the file", "", "| key | takes | default |", "|---|---|---|", *rows, ""]
    for section in [*TABLES, *SECTIONS]:
        default = type(getattr(Plan(), section))
        lines += [f"## [{section}]", ""]
        if section in SECTIONS:
            lines += [" ".join(str(SECTIONS[section].__doc__).split()), "", *table(SECTIONS[section])]
        for kind, part in TABLES.get(section, {}).items():
            also = " (the default)" if part is default else ""
            lines += [f'**`kind = "{kind}"`**{also}: {" ".join(str(part.__doc__).split())}', "", *table(part)]
    return "\n".join(lines)


def page() -> str:
    """The page as it should be."""
    said, _, _ = PAGE.read_text("utf-8").partition(MARK)
    return said + MARK + "\n" + text()


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
