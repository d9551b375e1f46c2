"""The thin app that Flower packs and sends to the nodes; its two modules are copied, and run nowhere else."""

from importlib.metadata import version
from pathlib import Path

from fedgen.plan import toml_of
from fedgen.store import save_folder

MODULES = ("client_app.py", "server_app.py")
APP = "app"  # its folder in that of a run


def app_of(run: Path) -> Path:
    """The app that plays this run, as a folder in the run's own."""
    release = version("fedgen-edge")
    project = f"""\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "fedgen-run"
version = "{release}"
description = "A run of fedgen-edge"
license = {{ file = "LICENSE" }}
requires-python = ">=3.11"
dependencies = ["fedgen-edge=={release}", "flwr[simulation]>=1.41,<1.43"]

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "fedgen"
fab-format-version = 1
flwr-version-target = "{version("flwr")}"

[tool.flwr.app.components]
serverapp = "server_app:app"
clientapp = "client_app:app"

[tool.flwr.app.config]
folder = {toml_of(str(run.absolute()))}
"""
    files = {name: (Path(__file__).parent / name).read_bytes() for name in MODULES}
    files |= {"pyproject.toml": project.encode(), "LICENSE": b"That of fedgen-edge.\n"}
    save_folder(run / APP, files)
    return run / APP
