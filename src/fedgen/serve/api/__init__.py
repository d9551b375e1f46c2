"""The server's HTTP side: OpenAI's paths and shapes, an admin's, a monitor's, and the page.

FastAPI, pydantic, uvicorn and prometheus_client are the extra `serve`, imported inside functions alone: what is asked
and answered is plain dataclasses, which pydantic reads as well as its own.
"""

from fedgen.serve.api.app import app
from fedgen.serve.api.guard import LOOPBACK, Door
from fedgen.serve.api.server import Server, listening

__all__ = ["LOOPBACK", "Door", "Server", "app", "listening"]
