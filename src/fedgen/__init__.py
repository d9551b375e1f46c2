"""fedgen-edge: parameter-efficient, personalised federated training of generative models at the edge."""

from fedgen.bank import Bank
from fedgen.errors import FedgenError
from fedgen.places import resume, run
from fedgen.plan import Plan
from fedgen.run import Run
from fedgen.serve.client import Client

__all__ = ["Bank", "Client", "FedgenError", "Plan", "Run", "resume", "run"]
__version__ = "0.1.0"
