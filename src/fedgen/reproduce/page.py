"""The page of a study: tables, figures and how it was done, all out of the result file, nothing typed by hand."""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from fedgen.report.wording import ABSENT, percent, saving, size
from fedgen.reproduce.drawing import png
from fedgen.reproduce.figures import FIGURES
from fedgen.reproduce.reading import (
    FULL,
    Result,
    Run,
    alike,
    bare,
    gains,
    own,
    rank_correlation,
    reached,
    read,
    shared,
    target,
    worst_tenth,
)
from fedgen.store import write_whole

DIGITS = {"text": 2, "image": 5}
DRAWN = ("adapter.rank", "training.steps", "training.epochs", "cohort.count", "cohort.fraction", "evaluate.keep")
SPREADS = "The mean of the seeds, and in brackets the least and the most."


def write(path: Path) -> list[Path]:
    """Draw a result file's figures and write its page beside it; what was written, the page last."""
    result, made = read(path), []
    for name, figure in FIGURES.items():
        if sheet := figure.sheet(result):
            made.append(path.with_name(_picture(path.stem, name)))
            write_whole(made[-1], png(sheet))
    write_whole(path.with_suffix(".md"), page(result, path.stem).encode())
    return [*made, path.with_suffix(".md")]


def page(result: Result, stem: str) -> str:
    """The page as it should be; its pictures are called after the file's stem."""
    about = result.content["about"]
    quick = " (quick version)" if about["quick"] else ""
    again = f"fedgen reproduce {about['study']}{' --quick' if about['quick'] else ''}"
    head = (
        f"# {about['title']}{quick}\n\nMade of [{stem}.json]({stem}.json); `{again}` plays it anew. {_missing(result)}"
    )
    worlds = [
        _block(f"## {world}", [*main_table(result, world), "", *rankings(result, world)]) for world in result.worlds()
    ]
    protocol = _block("## How it was done", facts(result))
    found = [_block("## Methods", methods(result)), _block("## Learning rates", rates(result))]
    swept = [_block(f"## {name.capitalize()}", table) for name, table in sweeps(result).items()]
    return "\n\n".join([head.strip(), *worlds, *_figures(result, stem), *swept, protocol, *found]) + "\n"


def _block(heading: str, lines: Iterable[str]) -> str:
    return "\n".join([heading, "", *lines]).rstrip()


def _picture(stem: str, name: str) -> str:
    return f"{stem}-{name}.png"


def _missing(result: Result) -> str:
    about = result.content["about"]
    broken = sum(bool(run["error"]) for run in result.content["runs"])
    said = f"Not played: {about['missing']} of its {about['wanted']} runs. " if about["missing"] else ""
    return said + (f"Runs that did not come to their end: {broken}." if broken else "")


def _figures(result: Result, stem: str) -> list[str]:
    """The figures that there are runs for, and the names of the others."""
    drawn = [name for name, figure in FIGURES.items() if figure.sheet(result)]
    blocks = [
        f"## {FIGURES[name].title}\n\n![{FIGURES[name].title}]({_picture(stem, name)})\n\n{FIGURES[name].caption}"
        for name in drawn
    ]
    absent = [figure.title.lower() for name, figure in FIGURES.items() if name not in drawn]
    return [*blocks, *([f"Figures left out for want of runs: {', '.join(absent)}."] if absent else [])]


# ---- tables


def main_table(result: Result, world: str) -> list[str]:
    """What each method came to in a world, the best first."""
    table = result.table(world)
    fair = alike(table)
    rows = sorted(table.items(), key=lambda item: mean(map(own, fair[item[0]])))
    full = table.get(FULL, [])
    goal = f"rounds to the best of {result.title(FULL)}" if full else "rounds"
    columns = [
        f"{result.unit}, own adapter", "shared adapter", "worst tenth of clients", "clients the personal step helps",
        "up, a client and round", "down, in the last round", goal, "bytes up till then",
    ]  # fmt: skip
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, runs in rows:
        cells = [_spread(result, values) for values in (map(own, runs), map(shared, runs), map(worst_tenth, runs))]
        sent = [_message(runs[0]), _down(runs[0]), *_arrival(runs, full)]
        sent = [ABSENT] * 4 if result.group(name) == "bounds" else sent
        lines.append(f"| {' | '.join([_named(result, name, runs), *cells, _helped(runs), *sent])} |")
    if rows:
        lines.append(f"| the bare backbone | {_spread(result, map(bare, rows[0][1]))} |" + " |" * 7)
    counts = sorted({len(run["clients"]) for runs in table.values() for run in runs})
    clients = " to ".join(f"{count}" for count in sorted({counts[0], counts[-1]}))
    failed = sum(run["failures"] for runs in table.values() for run in runs)
    said = f"{clients} clients, AdamW, one seed where no more are named. {SPREADS} Lower is better; rows stand in the "
    said += (
        "order of the seeds that all have. Where clients keep a part, the shared adapter is measured with that part."
    )
    said += f" Turns that failed: {failed}." if failed else ""
    if full:
        said += " Rounds and bytes are of the shared adapter on validation rows, bytes those of all clients."
    return [*lines, "", said]


def _named(result: Result, name: str, runs: Sequence[Run]) -> str:
    return result.title(name) + (f" ({len(runs)} seeds)" if len(runs) > 1 else "")


def _spread(result: Result, values: Iterable[float | None]) -> str:
    found, digits = [value for value in values if value is not None], DIGITS[result.kind]
    if not found:
        return ABSENT
    span = f" ({min(found):.{digits}f} to {max(found):.{digits}f})" if len(found) > 1 else ""
    return f"{mean(found):.{digits}f}{span}"


def _helped(runs: Sequence[Run]) -> str:
    """The share of clients that a personal step took below the shared adapter, over all seeds."""
    falls = [fall for run in runs for fall in gains(run)]
    return percent(sum(fall > 0 for fall in falls) / len(falls)) if any(falls) else ABSENT  # else no step was taken


def _message(run: Run) -> str:
    if not run["message"]:
        return ABSENT
    share = run["message"] / run["full_message"]
    return size(run["message"]) + (f", {saving(1 - share)} less than the model" if share < 0.9 else "")


def _down(run: Run) -> str:
    """What the server sent to each client whose update came, in the last round."""
    last = run["rounds"][-1]
    return size(last["down"] * run["message"] / last["up"]) if last["up"] else ABSENT


def _arrival(runs: Sequence[Run], full: Sequence[Run]) -> tuple[str, str]:
    """When the runs were as good as full FedAvg of the same seed ever was, and what had been sent."""
    goals = [(run, goal) for run in runs if (goal := target(full, run["seed"])) is not None]
    found = [arrived for run, goal in goals if (arrived := reached(run, goal))]
    if not goals or not any(line.get("measure") for run in runs for line in run["rounds"]):
        return ABSENT, ABSENT
    if not found:
        return "not reached", ABSENT
    some = "" if len(found) == len(goals) else f" ({len(found)} of {len(goals)} seeds)"
    return f"{mean(turn for turn, _ in found):.0f}{some}", size(mean(up for _, up in found))


def sweeps(result: Result) -> dict[str, list[str]]:
    """A table of each sweep that has no figure."""
    found: dict[str, list[str]] = {}
    for run in result.runs:
        if not run["sweep"] or run["key"] in DRAWN:
            continue
        goal = "rounds to the best of full FedAvg"
        columns = [f"`{run['key']}`", "", result.unit, "up, a client and round", goal, "bytes till then"]
        full = result.table(run["world"]).get(FULL, [])
        cells = [f"`{run['value']}`", result.title(run["method"]), _spread(result, [own(run)]), _message(run)]
        lines = found.setdefault(run["sweep"], [f"| {' | '.join(columns)} |", "|---" * 6 + "|"])
        lines.append(f"| {' | '.join([*cells, *_arrival([run], full)])} |")
    return found


def rankings(result: Result, world: str) -> list[str]:
    """Both optimizers side by side, where both were played: the first seed that they share."""
    adam, sgd = result.table(world), result.table(world, "sgd")
    pairs = {name: (adam[name][0], sgd[name][0]) for name in adam if name in sgd}
    if len(pairs) < 3:
        return []
    columns = [[own(pair[side]) for pair in pairs.values()] for side in (0, 1)]
    places = [sorted(column) for column in columns]
    lines = [f"| {result.unit}, own adapter | AdamW | place | SGD | place |", "|---|---|---|---|---|"]
    rows = zip(*columns, pairs, strict=True)
    for a, s, name in sorted(rows):
        first, second = places[0].index(a) + 1, places[1].index(s) + 1
        lines.append(f"| {result.title(name)} | {_spread(result, [a])} | {first} | {_spread(result, [s])} | {second} |")
    return [*lines, "", f"Spearman's correlation of the two rankings: {rank_correlation(*columns):.2f}."]


def facts(result: Result) -> list[str]:
    """Data, training, backbone and machine, as the runs had them."""
    about, plan = result.content["about"], tomllib.loads(result.content["plan"])
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    said = {
        "rounds": plan.get("rounds"),
        "clients a round": _said(plan.get("cohort", {})),
        "local training": _said(plan.get("training", {}), "lr"),
        "personal step": f"{_said(plan.get('personal', {}), 'lr')}, at {result.content.get('last', 1)} times the rate",
        "adapter": _said(plan.get("adapter", {})),
        "data": _said(plan.get("data", {})),
        "who holds what": _said(plan.get("partition", {})),
        "held out": _said(plan.get("deal", {})),
        "backbone": _said(result.content["backbone"]),
        "backbone hash": ", ".join(sorted({run["backbone_hash"] for run in result.runs if run.get("backbone_hash")})),
        "seeds": ", ".join(map(str, about["seeds"])),
        "machine": f"{about['machine']}, {about['threads']} thread a run, {about['minutes']} minutes of runs",
        "versions": f"Python {about['python']}, {versions}",
        "date": about["date"],
    }
    lines = ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in said.items() if value)]
    worlds = [f"- **{world}**: {_code(lines)}" for world, lines in result.content["worlds"].items()]
    return [*lines, "", "Worlds, as settings over that plan:", "", *worlds]


def _said(section: Mapping[str, Any], *without: str) -> str:
    said = {key: value for key, value in section.items() if value not in ("", [], False) and key not in without}
    return ", ".join(f"{key} {_value(value)}" for key, value in said.items())


def _value(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _code(settings: Sequence[str]) -> str:
    return " ".join(f"`{line}`" for line in settings) or "as it is"


def methods(result: Result) -> list[str]:
    """Every method's settings, its paper, and where it departs from that."""
    lines = ["| | settings | paper | departs |", "|---|---|---|---|"]
    rows = ((one["title"], _code(one["settings"]), one["paper"], one["departs"]) for one in _known(result))
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def _known(result: Result) -> Iterable[Mapping[str, Any]]:
    return result.content["methods"].values()  # type: ignore[no-any-return]


def rates(result: Result) -> list[str]:
    """What each learning rate came to where rates were chosen, the chosen one in bold."""
    found, lines = result.content["rates"], []
    for world, optimizers in found.items():
        for optimizer, by_method in optimizers.items():
            if by_method:
                lines += [f"| {optimizer}, chosen in {world} | rate: {result.unit} |", "|---|---|"]
                lines += [f"| {result.title(name)} | {_tried(result, tries)} |" for name, tries in by_method.items()]
                lines += [""]
    settings = _code(result.content["trial"]["settings"])
    said = f"Rates are chosen on clients and rows that no table has, as many for each method: {settings}."
    return [*lines, f"{said} A choice at the end of a grid may not be the best there is; nothing but rates is tuned."]


def _tried(result: Result, tries: Mapping[str, float | None]) -> str:
    known = [value for value in tries.values() if value is not None]
    best = min(known, default=None)
    shown = (
        (rate, value, _spread(result, [value]) if value is not None else "diverged") for rate, value in tries.items()
    )
    return ", ".join(
        f"**{rate}: {text}**" if value is not None and value == best else f"{rate}: {text}"
        for rate, value, text in shown
    )
