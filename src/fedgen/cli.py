"""The command `fedgen`: run plans, look at runs, and use what they trained."""

import sys
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedgen import places, report, serve_cli
from fedgen import plan as plans
from fedgen.devices import Unknown
from fedgen.encode import seal as sealed_prompt
from fedgen.encode import unseal
from fedgen.errors import FedgenError, PlanError
from fedgen.exhibit import draw
from fedgen.fleet_cli import fleet_app
from fedgen.leaving import Form, backbone_of, leave, leave_all, vllm
from fedgen.methods import METHODS, over
from fedgen.places import node as warm
from fedgen.report.wording import saving, size
from fedgen.reproduce import page, reproduce
from fedgen.run import PLAN, Run
from fedgen.sample import route, sampler, spelled
from fedgen.screen import (
    Screen,
    clusters_table,
    devices_lines,
    methods_table,
    outcome_table,
    quality_table,
    runs_table,
    standing,
)
from fedgen.store import read_bytes, write_whole

DEMOS = Path(__file__).parent / "demos"
WIDE = 160  # columns for a pipe or a file, where nothing should be cut

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(fleet_app, name="fleet")
app.command("serve")(serve_cli.serve)
app.command("key")(serve_cli.key)
out = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)

MIXTURE = "global, cluster-N, global@round-N or client/NAME; or several with weights, as cluster-1=0.7,cluster-2=0.7."
ADAPTER = f"{MIXTURE[:-1]}; or backbone; images: 'A until 0.4 then B' to change between steps."

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")]
Settings = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as training.epochs=2; may be repeated."),
]


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"fedgen-edge {version('fedgen-edge')}")
        raise typer.Exit


@app.callback()
def front(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    """Federate generative models' adapters: run plans, look at runs, and use what they trained."""


class What(StrEnum):
    """Which demo."""

    text = "text"
    images = "images"


@app.command()
def demo(
    what: Annotated[What | None, typer.Argument(help="Only this one; both without it.")] = None,
    to: Annotated[Path | None, typer.Option(help="The runs' folder; by default a new one each below runs/.")] = None,
    settings: Settings = [],  # noqa: B006  typer reads the default, nobody changes it
) -> None:
    """Federate the embedded models: text over Python's own modules, images over the letters of many typefaces."""
    played = []
    for name in [what] if what else What:
        out.print(f"[bold]The demo of {name}[/bold]")
        plan = plans.read(DEMOS / f"{name}.toml", settings)
        played.append(_play(plan, to / name if to and not what else to))
        if name is What.text:
            _say_samples(played[-1])
    folders = " ".join(str(run.folder) for run in played)
    out.print(f"try the adapters side by side on a page: fedgen serve {folders}", soft_wrap=True)


@app.command("run")
def run_plan(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan, a TOML file.")],
    to: Annotated[Path | None, typer.Option(help="The run's folder; by default a new one below runs/.")] = None,
    settings: Settings = [],  # noqa: B006
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved plan and its cost, and run nothing.")
    ] = False,
    *,
    method: Annotated[str, typer.Option(help="As this method has the plan; `fedgen methods` lists them.")] = "",
) -> None:
    """Run a plan to its end."""
    wanted = over(method, plans.read(plan, settings)) if method else plans.read(plan, settings)
    if dry_run:
        _say_cost(wanted)
    else:
        _play(wanted, to)


@fleet_app.command("run")
def run_on_fleet(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan, a TOML file.")],
    folder: Annotated[Path, typer.Option(help="The fleet's folder.")] = Path("fleet"),
    to: Annotated[Path | None, typer.Option(help="The run's folder; by default a new one below runs/.")] = None,
    settings: Settings = [],  # noqa: B006
) -> None:
    """Run a plan on a fleet: `fedgen run` with place = "fleet" and this fleet's folder."""
    _play(plans.read(plan, [*settings, "place=fleet", f"fleet.folder={folder}"]), to)


@app.command()
def node(folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The node's folder on this device.")]) -> None:
    """Keep this device's backbone warm and answer for its clients; a fleet starts it when it is needed."""
    warm.serve(folder)


@app.command("methods")
def list_methods() -> None:
    """List the methods by name: published ones, our own, and where ours depart from the papers."""
    out.print(methods_table(METHODS))


@app.command()
def resume(run: RunFolder) -> None:
    """Go on with a run from its last finished round."""
    with Screen(out) as screen:
        found = places.resume(run, tell=screen.tell)
    _say_outcome(found)


@app.command("list")
def list_runs(
    folder: Annotated[Path, typer.Argument(help="Where the runs are.")] = Path("runs"),
) -> None:
    """List the runs below a folder, newest last."""
    found = [Run(path.parent) for path in sorted(folder.glob(f"*/{PLAN}"), key=lambda path: path.stat().st_mtime)]
    out.print(runs_table(found) if found else f"no runs below {folder}; start one with `fedgen demo`")


@app.command()
def show(run: RunFolder) -> None:
    """Show how a run went."""
    _say_outcome(Run(run), write=False)


@app.command("report")
def write_report(run: RunFolder) -> None:
    """Write a run's page, and say where it is."""
    out.print(str(report.write(Run(run))), soft_wrap=True)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Two runs or more.")],
    to: Annotated[Path, typer.Option(help="The page to write.")] = Path("comparison.html"),
) -> None:
    """Put several runs side by side, here and on a page."""
    found = [Run(path) for path in runs]
    out.print(runs_table(found))
    out.print(str(report.compare(found, to)), soft_wrap=True)


@app.command()
def generate(
    run: RunFolder,
    prompt: Annotated[
        str | None, typer.Option(help="What to continue, or to draw; a class's number where it is asked by that.")
    ] = None,
    adapter: Annotated[str, typer.Option("--adapter", "--mix", help=ADAPTER)] = "global",
    *,
    sealed: Annotated[
        Path | None, typer.Option(help="A prompt that `fedgen seal` wrote, in place of --prompt.")
    ] = None,
    routed: Annotated[bool, typer.Option("--route", help="Mix the clusters nearest to the prompt instead.")] = False,
    top: Annotated[int, typer.Option(min=1, help="With --route: so many clusters.")] = 2,
    spread: Annotated[float, typer.Option(min=1e-3, help="With --route: near 0 the nearest cluster takes all.")] = 0.1,
    gain: Annotated[
        float, typer.Option(help="With --route: the sum of the weights; 1 blends, 2 can add two up.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Names the draw.")] = 0,
    tokens: Annotated[int, typer.Option(min=1, help="Text: at most so many tokens.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="Text: 0 takes the likeliest token each time.")] = 0.0,
    n: Annotated[int, typer.Option("--n", min=1, help="Images: how many.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Images: steps of denoising.")] = 20,
    guidance: Annotated[float, typer.Option(min=0.0, help="Images: how far towards the prompt; 1 is as learnt.")] = 2.0,
    to: Annotated[Path, typer.Option("--out", help="Images: the folder for them.")] = Path("pictures"),
) -> None:
    """Continue a prompt, or draw it, under one of a run's adapters or a mixture of them."""
    if routed and adapter != "global":
        raise typer.BadParameter("chooses the adapters itself; leave --adapter and --mix away", param_hint="--route")
    if (prompt is None) == (sealed is None):
        raise typer.BadParameter("wanted one of the two", param_hint="--prompt, --sealed")
    if routed and prompt is None:
        raise typer.BadParameter("reads the prompt itself; give it as --prompt", param_hint="--route")
    if not routed and (top, spread, gain) != (2, 0.1, 1.0):
        raise typer.BadParameter("are of --route; add it", param_hint="--top, --spread, --gain")
    voice = sampler(Run(run))
    asked = unseal(read_bytes(sealed), voice.backbone, str(sealed)) if sealed else prompt or ""
    if routed:
        adapter = spelled(route(voice.run, voice.encode(prompt or ""), top=top, temperature=spread, gain=gain))
        typer.echo(f"routed to {adapter}", err=True)
    if voice.backbone.kind == "image":
        stem = sealed.stem if sealed else ""
        for path in draw(voice, asked, adapter, range(seed, seed + n), to, steps=steps, guidance=guidance, stem=stem):
            out.print(str(path), soft_wrap=True, markup=False)
        return
    for piece in voice.write(asked, adapter=adapter, tokens=tokens, temperature=temperature, seed=seed):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


@app.command()
def seal(
    run: RunFolder,
    prompt: Annotated[str, typer.Option(help="What is to be continued or drawn elsewhere.")],
    to: Annotated[Path, typer.Option(help="The file to send.")],
) -> None:
    """Write a prompt as hidden states, to send it without its text; docs/privacy.md says how little that hides."""
    backbone = Run(run).plan.backbone.load()
    sent = sealed_prompt(prompt, backbone)
    write_whole(to, sent)
    out.print(f"{to}: {size(len(sent))}, for the backbone '{backbone.name}'", soft_wrap=True)


@app.command()
def export(
    run: RunFolder,
    to: Annotated[Path, typer.Option(help="The folder to write; of --as kohya, the one to put files in.")],
    adapter: Annotated[str, typer.Option("--adapter", "--mix", help=MIXTURE)] = "global",
    rank: Annotated[int, typer.Option(min=0, help="Make it so wide, as near as can be; 0: as wide as it takes.")] = 0,
    form: Annotated[
        Form, typer.Option("--as", help="A bundle, a file for ComfyUI, a whole model, or with GGUF's recipe.")
    ] = Form.peft,
    *,
    shared: Annotated[
        bool, typer.Option("--all", help="All that the run shares, a folder each; and how to serve them.")
    ] = False,
    also: Annotated[
        list[str], typer.Option("--with", metavar="NAME", help="With --all: this one too, such as client/NAME.")
    ] = [],  # noqa: B006
) -> None:
    """Write an adapter, a mixture as one, or all of a run's, as PEFT and other programs and servers read them."""
    source = Run(run)
    if shared and adapter != "global":
        raise typer.BadParameter("is one adapter; with --all, add more by --with", param_hint="--adapter, --mix")
    if also and not shared:
        raise typer.BadParameter("is of --all; add it, or name one by --adapter", param_hint="--with")
    found = (
        leave_all(source, to, also=also, form=form, rank=rank)
        if shared
        else [leave(source, adapter, to, form=form, rank=rank)]
    )
    for left in found:
        card = left.card
        said = "a whole model" if form is Form.merged else f"rank {card.rank}"
        said += f", {left.lost:.2%} of its energy lost" if rank else ""
        where = f"{left.path}: {said}, content {card.hash[:12]}, made by run {card.run}"
        out.print(where, soft_wrap=True, markup=False)
    if shared and form is Form.peft and not found[0].component:
        out.print(vllm(found, backbone_of(source), to), soft_wrap=True, markup=False)


@app.command("reproduce")
def reproduce_study(
    name: Annotated[str, typer.Argument(metavar="NAME", help="ptb or cifar10, or a study's TOML file.")],
    quick: Annotated[bool, typer.Option("--quick", help="The short version: fewer methods, rounds and seeds.")] = False,
    data: Annotated[
        Path, typer.Option(envvar="FEDGEN_DATA", help="The folder with ptb/, cifar10/ and the others.")
    ] = Path("data"),
    *,
    work: Annotated[Path | None, typer.Option(help="The folder to go on from; by default one below runs/.")] = None,
    to: Annotated[Path, typer.Option("--out", help="The folder for results.")] = Path("docs/results"),
    minutes: Annotated[float, typer.Option(min=0.0, help="Start no run after so many minutes; 0: play all.")] = 0.0,
    jobs: Annotated[int, typer.Option(min=0, help="Processes at work, a thread each; 0: one a core.")] = 0,
) -> None:
    """Play a published experiment anew, or go on with it; the same command again goes on where it was stopped."""
    where = work or Path("runs") / f"reproduce-{Path(name).stem}{'-quick' if quick else ''}"
    path, found = reproduce(name, data=data, work=where, out=to, quick=quick, minutes=minutes, jobs=jobs)
    about = found["about"]
    missing = f"; {about['missing']} are missing: the same command goes on" if about["missing"] else ""
    out.print(f"{path}: {len(found['runs'])} of {about['wanted']} runs{missing}", soft_wrap=True)
    if found["runs"]:
        out.print(str(page.write(path)[-1]), soft_wrap=True)


def _play(plan: plans.Plan, to: Path | None) -> Run:
    with Screen(out) as screen:
        found = places.run(plan, to, tell=screen.tell)
    _say_outcome(found)
    return found


def _say_outcome(run: Run, *, write: bool = True) -> None:
    if not run.finished:
        out.print(standing(run), soft_wrap=True)
        return
    out.print(outcome_table(run))
    if groups := clusters_table(run):
        out.print(groups)
    if measures := quality_table(run):
        out.print(measures)
    if write:
        out.print(f"report: {report.write(run)}", soft_wrap=True)


def _say_cost(plan: plans.Plan) -> None:
    settled, cost = places.cost(plan)
    less = f"; {saving(cost.saved)} less than full-model FedAvg" if settled.adapter.of == "pairs" else ""
    full = f"full-model FedAvg would send {size(cost.full_message)}"
    wide = f" at rank {settled.adapter.rank}" if settled.mixed else ""
    out.print(plans.write(settled), markup=False, soft_wrap=True)
    for line in (  # comments, so that what is printed is a plan still
        f"clients           {cost.clients}, {cost.cohort} a round, {settled.rounds} rounds",
        f"backbone          {cost.backbone_parameters:,} parameters, frozen",
        f"adapter           {cost.adapter_parameters:,} parameters",
        f"one message       {size(cost.message)} up, {size(cost.down_message)} down{wide}; {full}",
        f"bytes a round     {size(cost.round_bytes)} up, {size(cost.round_down_bytes)} down{less}",
        f"memory of a pass  about {size(cost.row_bytes * cost.rows_a_pass)} for {cost.rows_a_pass} rows",
    ):
        out.print(f"# {line}", markup=False, soft_wrap=True)
    for line in devices_lines(cost.devices, known=settled.devices != Unknown()):
        out.print(f"# {line}".rstrip(), markup=False, soft_wrap=True)


def _say_samples(run: Run) -> None:
    """One client's own held-out text, continued under each adapter."""
    scores = {name: found for name, found in run.scores.items() if "personal" in found}
    if not scores:
        return
    ranked = sorted(scores, key=lambda name: scores[name]["personal"].per_term / scores[name]["backbone"].per_term)
    client = ranked[len(ranked) // 2]  # neither the one that gained most nor the one that gained least
    voice = sampler(run)
    prompt = places.held_out_prompt(run.plan, voice.backbone, client)
    out.print(f"\n[bold]Held-out text of client '{client}', continued[/bold]")
    out.print(prompt, style="dim", markup=False)
    for adapter in ("backbone", "global", f"client/{client}"):
        text = "".join(voice.write(prompt, adapter=adapter, tokens=40, temperature=0.5))
        out.print(f"\n[bold]{adapter}[/bold]")
        out.print(text, markup=False)


def main() -> None:
    """Run the command. Exit codes: 0 done, 1 failed, 2 wrong plan or usage, 130 stopped by Ctrl-C."""
    try:
        app()
    except FedgenError as error:
        Console(stderr=True, highlight=False).print(f"[bold red]error[/bold red] {_plain(error)}", soft_wrap=True)
        sys.exit(2 if isinstance(error, PlanError) else 1)


def _plain(error: FedgenError) -> str:
    return str(error).replace("[", "\\[")


if __name__ == "__main__":
    main()
