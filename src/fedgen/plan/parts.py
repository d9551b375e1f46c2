"""What a plan is: its sections, and the parts that each can name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from torch import nn

from fedgen import factors
from fedgen.aggregate import AGGREGATES, Aggregate, Average, Padded, widest
from fedgen.allot import ALLOTS, Allot, Dealt, Fit, Needed
from fedgen.backbones import BACKBONES, Language, Model
from fedgen.bank import Bank
from fedgen.client import Training
from fedgen.cluster import CLUSTERS, Clustering, Nothing
from fedgen.cohort import COHORTS, Cohort, Uniform
from fedgen.data import PARTITIONS, SOURCES, ByField, Deal, Partition, Source, Stdlib
from fedgen.devices import DEVICES, Devices, Unknown
from fedgen.encode import ENCODERS, Encoder, Profile, Silent
from fedgen.exchange import EXCHANGES, Alone, Exchange
from fedgen.groups import Hierarchy
from fedgen.guards import GUARDS, Clip, Compress, Guards
from fedgen.outer import OUTERS, Outer, Plain
from fedgen.personal import PERSONALS, FineTune, Personal
from fedgen.records import Range
from fedgen.share import SHARES, Halves, Increment, Share
from fedgen.weights import AnyBank, Weights


@dataclass(frozen=True)
class Adapter:
    """The federated adapter: pairs of factors of this rank on the layers named (none: the backbone's own choice).

    With `last` below 1 only that share of these layers is adapted, the last ones; what lies below them keeps nothing
    for a gradient. Devices that carry less have one of these `ranks` of their own, as [allot] says; they are offered
    the nearest adapter of it.

    `of = "weights"` is the full model instead: every weight is trained and sent, as its change from the backbone, which
    `training.decay` pulls to zero; it has no rank, and no layers to name.
    """

    rank: Annotated[int, Range(1)] = 4
    targets: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    of: Literal["pairs", "weights"] = "pairs"
    last: Annotated[float, Range(0, 1, open=True)] = 1.0

    def bank(self, network: nn.Module, rank: int) -> AnyBank:
        """The bank of such adapters on a network, the widest of this rank."""
        return Weights(network) if self.of == "weights" else Bank(network, self.targets, rank)


@dataclass(frozen=True)
class Measure:
    """What is measured: validation rows of `clients` every so many rounds (0: never), `rows` at most each (0: all).

    `keep` is after how many rounds the shared adapters are kept as bundles CLUSTER@round-N (0: only the last ones).
    """

    every: Annotated[int, Range(0)] = 1
    clients: Annotated[int, Range(1)] = 16
    rows: Annotated[int, Range(0)] = 0
    keep: Annotated[int, Range(0)] = 0


@dataclass(frozen=True)
class Quality:
    """What is drawn once the rounds of images are over: `pictures` by each adapter of `clients` clients (0: none).

    Each takes `steps` of denoising, with `guidance` towards its prompt. Distances are measured on the `features` of a
    network, whose `weights` are a file; prompts are held against pictures by the CLIP folder `clip`.
    """

    pictures: Annotated[int, Range(0)] = 0
    clients: Annotated[int, Range(1)] = 8
    steps: Annotated[int, Range(1)] = 20
    guidance: Annotated[float, Range(0)] = 2.0
    features: Literal["none", "judge", "resnet", "inception"] = "none"
    weights: str = ""
    clip: str = ""


@dataclass(frozen=True)
class Ray:
    """With place = "ray": so many `actors` (0: as many as fit), each with `cpus` cores and a share `gpus` of one.

    `address` is that of a Ray cluster (none: one is started here); its machines share this one's folders.
    """

    actors: Annotated[int, Range(0)] = 0
    cpus: Annotated[int, Range(1)] = 1
    gpus: Annotated[float, Range(0)] = 0.0
    address: str = ""


@dataclass(frozen=True)
class Fleet:
    """With place = "fleet": the fleet whose `folder` lies here starts a run once so many `nodes` are online.

    After `deadline` seconds a round goes on without those who have not answered, if a share `quorum` of those asked
    has, and at once if the nodes of the others are offline; a run waits `patience` seconds for nodes or a quorum, then
    stops. A share `spare` of those asked is not waited for: the slowest. With a `buffer`, rounds are asynchronous: each
    ends once so many updates have come, whatever rounds they began in, and a change that is s rounds late counts
    (1 + s)^-`staleness`.

    In process, with [devices], rounds end on the same terms in simulated time; only that it waits for a quorum however
    long that takes. Training takes time there and measuring none.
    """

    folder: str = "fleet"
    nodes: Annotated[int, Range(1)] = 1
    patience: Annotated[float, Range(0, open=True)] = 300.0
    deadline: Annotated[float, Range(0, open=True)] = 600.0
    quorum: Annotated[float, Range(0, 1)] = 0.5
    spare: Annotated[float, Range(0, 0.9)] = 0.0
    buffer: Annotated[int, Range(0)] = 0
    staleness: Annotated[float, Range(0)] = 0.5


@dataclass(frozen=True)
class Plan:
    """Everything a run depends on: one part a section."""

    name: str = "run"
    seed: Annotated[int, Range(0)] = 0
    rounds: Annotated[int, Range(1)] = 10
    place: Literal["inprocess", "ray", "fleet"] = "inprocess"
    guards: tuple[str, ...] = ()
    backbone: Model = field(default_factory=Language)
    adapter: Adapter = field(default_factory=Adapter)
    data: Source = field(default_factory=Stdlib)
    partition: Partition = field(default_factory=ByField)
    deal: Deal = field(default_factory=Deal)
    training: Training = field(default_factory=Training)
    encode: Encoder = field(default_factory=Silent)
    profile: Profile = field(default_factory=Profile)
    cluster: Clustering = field(default_factory=Nothing)
    hierarchy: Hierarchy = field(default_factory=Hierarchy)
    exchange: Exchange = field(default_factory=Alone)
    cohort: Cohort = field(default_factory=Uniform)
    devices: Devices = field(default_factory=Unknown)
    allot: Allot = field(default_factory=Dealt)
    share: Share = field(default_factory=Halves)
    clip: Clip = field(default_factory=Clip)
    compress: Compress = field(default_factory=Compress)
    aggregate: Aggregate = field(default_factory=Average)
    outer: Outer = field(default_factory=Plain)
    personal: Personal = field(default_factory=FineTune)
    evaluate: Measure = field(default_factory=Measure)
    quality: Quality = field(default_factory=Quality)
    ray: Ray = field(default_factory=Ray)
    fleet: Fleet = field(default_factory=Fleet)

    @property
    def width(self) -> int:
        """The widest rank that training or serving takes."""
        rank = self.adapter.rank
        served, trained = self.share.ranks(widest(self.aggregate, rank), rank)
        return max(trained, self.personal.rank(served))

    @property
    def clocked(self) -> bool:
        """Whether rounds take the time that they would take on clients' devices."""
        return self.place == "inprocess" and not isinstance(self.devices, Unknown)

    @property
    def mixed(self) -> bool:
        """Whether clients have ranks of their own."""
        return bool(self.adapter.ranks) or not isinstance(self.allot, Dealt)

    def fit(self, ranks: Mapping[str, int]) -> Fit:
        """How offers fit clients who train at these ranks."""
        order = dict if isinstance(self.aggregate, Padded) else factors.ordered  # the padded are means rank by rank
        most = self.share.carries if isinstance(self.share, Increment) else 0
        mean = self.allot.mean if isinstance(self.allot, Needed) else 0.0
        return Fit(ranks, self.mixed and isinstance(self.share, Halves), most, order, mean)

    @property
    def passage(self) -> Guards:
        """The guards on the way of the run's messages."""
        return Guards(tuple(getattr(self, name) for name in self.guards), self.share, self.seed)


Table = Mapping[str, type[Any]]
TABLES: dict[str, Table] = {
    "backbone": BACKBONES,
    "data": SOURCES,
    "partition": PARTITIONS,
    "encode": ENCODERS,
    "cluster": CLUSTERS,
    "exchange": EXCHANGES,
    "cohort": COHORTS,
    "devices": DEVICES,
    "allot": ALLOTS,
    "share": SHARES,
    "aggregate": AGGREGATES,
    "outer": OUTERS,
    "personal": PERSONALS,
}
SECTIONS: dict[str, type[Any]] = {
    "adapter": Adapter,
    "deal": Deal,
    "training": Training,
    "profile": Profile,
    "hierarchy": Hierarchy,
    **GUARDS,
    "evaluate": Measure,
    "quality": Quality,
    "ray": Ray,
    "fleet": Fleet,
}


def kind_of(section: str, part: object) -> str:
    """The name under which a part stands in its table."""
    return next(name for name, kind in TABLES[section].items() if type(part) is kind)
