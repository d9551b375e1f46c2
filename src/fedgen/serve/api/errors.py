"""Every error as OpenAI's clients know it: a status, and one line that says what to do."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedgen.errors import BusyError, ClosedError, FedgenError, LateError, ServeError, StoreError, UnknownError
from fedgen.serve.api.answers import Error, Wrong

LOG = logging.getLogger(__name__)
INVALID = "invalid_request_error"
SPOILT = "an adapter of this answer cannot be read any more; the server's log says why"
BROKEN = "something is wrong on the server, whose log says what; asking again may do"


class RefusedError(ServeError):
    """A request that is refused with a status and a code of its own, and for which of its parameters."""

    def __init__(self, said: str, *, status: int = 400, code: str | None = None, param: str | None = None) -> None:
        Exception.__init__(self, said)
        self.status, self.code, self.param = status, code, param


@dataclass(frozen=True)
class Refusal:
    """An error on its way out."""

    status: int
    body: Error
    headers: Mapping[str, str] = field(default_factory=dict)


def refusal(error: Exception) -> Refusal:
    """What an error comes to."""
    if isinstance(error, RefusedError):
        kind = {401: "authentication_error", 403: "permission_error"}.get(error.status, INVALID)
        heads = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
        return _refusal(error.status, str(error), kind, code=error.code, param=error.param, headers=heads)
    if isinstance(error, BusyError):
        after = {"Retry-After": str(max(1, round(error.after)))}
        return _refusal(429, str(error), "rate_limit_error", code="queue_full", headers=after)
    if isinstance(error, FedgenError) and not isinstance(error, StoreError):
        status, kind, code = next(said for known, said in STATUS.items() if isinstance(error, known))
        return _refusal(status, str(error), kind, code=code, param="model" if status == 404 else None)
    LOG.error("a request failed", exc_info=error)
    return _refusal(500, SPOILT if isinstance(error, StoreError) else BROKEN, "server_error", code="internal_error")


def _refusal(
    status: int, message: str, kind: str, *, code: str | None, param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Refusal:  # fmt: skip
    return Refusal(status, Error(error=Wrong(message=message, type=kind, param=param, code=code)), headers or {})


STATUS: dict[type[FedgenError], tuple[int, str, str | None]] = {
    UnknownError: (404, INVALID, "model_not_found"),
    LateError: (504, "timeout_error", "deadline_exceeded"),
    ClosedError: (503, "server_error", "not_ready"),
    FedgenError: (400, INVALID, None),
}
