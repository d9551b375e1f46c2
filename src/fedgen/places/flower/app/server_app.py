"""What Flower starts on the server for a run: it plays the run whose folder is named, over Flower's grid."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedgen.places.flower.grid import play

app = ServerApp()


def main(grid: Grid, context: Context) -> None:
    """Play the run, or go on with it."""
    play(grid, str(context.run_config["folder"]), context.run_id)


app.main()(main)
