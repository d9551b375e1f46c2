"""The exception tree: one clear error that says where, what was wanted, what came, and the remedy.

`FedgenError`
├── PlanError       a plan that cannot be run: unknown key, wrong type or range, parts that disagree
├── TreeError       two trees that do not fit each other
├── BackboneError   a backbone folder that is missing, broken, or has no layer to adapt
├── DataError       data that is missing, empty, unreadable or too small
├── ClientError     a client's turn that went wrong
├── PrivacyError    something that would leave a device and must not
├── StoreError      a bundle, checkpoint or run folder that cannot be read or written
└── ServeError      a request that cannot be answered
    ├── UnknownError    it names what is not there, or not for this asker: which of the two is not told
    ├── BusyError       all places in the queue are taken; `after` so many seconds one may be free
    ├── LateError       its deadline passed before it was done
    └── ClosedError     the server is starting or stopping
"""


class FedgenError(Exception):
    """Anything that fedgen raises on purpose."""


class PlanError(FedgenError):
    """A plan that cannot be run."""


class TreeError(FedgenError):
    """Two trees that do not fit each other."""


class BackboneError(FedgenError):
    """A backbone that is missing, broken, or has nothing to adapt."""


class DataError(FedgenError):
    """Data that is missing, empty, unreadable or too small."""


class ClientError(FedgenError):
    """A client's turn that went wrong."""


class PrivacyError(FedgenError):
    """Something that would leave a device and must not."""


class StoreError(FedgenError):
    """A bundle, checkpoint or run folder that cannot be read or written."""


class ServeError(FedgenError):
    """A request that cannot be answered."""


class UnknownError(ServeError):
    """It names what is not there, or not for this asker."""


class BusyError(ServeError):
    """All places are taken; `after` so many seconds one may be free."""

    def __init__(self, said: str, after: float) -> None:
        Exception.__init__(self, said)
        self.after = after


class LateError(ServeError):
    """Its deadline passed before it was done."""


class ClosedError(ServeError):
    """The server is starting or stopping."""
