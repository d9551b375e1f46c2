"""What a monitor asks of a server, as Prometheus reads it. No adapter is named, so none is given away."""

from collections.abc import Callable, Iterator
from typing import Any

from fedgen.serve.engine.wishes import Ended
from fedgen.serve.house import House, Stand
from fedgen.serve.keys import Who

FIRST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """Counts of one server, beside what its house says when it is asked."""

    def __init__(self, house: House) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self.registry = CollectorRegistry()
        about: Any = {"registry": self.registry}
        self._requests = Counter("fedgen_requests", "Requests answered.", ["endpoint", "status"], **about)
        self._first = Histogram("fedgen_first_token_seconds", "From question to first text.", buckets=FIRST, **about)
        self._between = Histogram("fedgen_token_seconds", "Between two texts of a row.", buckets=BETWEEN, **about)
        self._waited = Histogram("fedgen_queue_seconds", "In the queue.", ["type"], buckets=FIRST, **about)
        self._tokens = Counter("fedgen_tokens", "Tokens: read, of these cached, and written.", ["what"], **about)
        self._pictures = Counter("fedgen_pictures", "Pictures drawn.", **about)
        self.registry.register(Gauges(house))

    def request(self, endpoint: str, status: int) -> None:
        """Count a request that was answered."""
        self._requests.labels(endpoint, str(status)).inc()

    def piece(self, seconds: float, *, first: bool) -> None:
        """Count a piece of text, so long after the question or after the piece before."""
        (self._first if first else self._between).observe(seconds)

    def ended(self, kind: str, event: Ended) -> None:
        """Count a row that has ended."""
        self._waited.labels(kind).observe(event.waited)
        if kind == "image":
            self._pictures.inc()
            return
        for what, count in (("read", event.given), ("cached", event.cached), ("written", event.made)):
            self._tokens.labels(what).inc(count)

    def text(self) -> bytes:
        """Everything, to be read by Prometheus."""
        from prometheus_client import generate_latest

        found: bytes = generate_latest(self.registry)
        return found


class Gauges:
    """How full a house is now."""

    def __init__(self, house: House) -> None:
        self._house = house

    def collect(self) -> Iterator[Any]:
        """A family for each number, a sample a run."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        families = [(GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)]
        for family, table in families:
            for name, about, read in table:
                found = family(f"fedgen_{name}", about, labels=["run"])
                for stand in self._house.stands.values():
                    found.add_metric([stand.name], float(read(stand)))
                yield found


def _round(stand: Stand) -> int:
    """The newest round that is served to all."""
    return max(entry.round for entry in stand.catalogue.visible(NOBODY))


NOBODY = Who("")
Number = Callable[[Stand], int]
GAUGES: tuple[tuple[str, str, Number], ...] = (
    ("rows_running", "Rows in the batch.", lambda stand: stand.engine.running),
    ("rows_waiting", "Rows in the queue.", lambda stand: stand.engine.waiting),
    ("batch_adapters", "Different adapters in the batch.", lambda stand: stand.engine.distinct),
    ("slots_used", "Adapters in memory.", lambda stand: len(stand.slots)),
    ("round", "The newest round served to all.", _round),
)
COUNTERS: tuple[tuple[str, str, Number], ...] = (
    ("adapter_loads", "Adapters brought into memory.", lambda stand: stand.slots.loads),
    ("adapter_hits", "Adapters found in memory.", lambda stand: stand.slots.hits),
    ("adapter_evictions", "Adapters that made room.", lambda stand: stand.slots.evictions),
)
