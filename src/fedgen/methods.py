"""Methods by name: each is a few settings of a plan, the paper it comes from, and where this one departs from it.

`METHODS["ditto"].over(plan)` is that plan as the method has it, with as many local steps a turn as before.
"""

from dataclasses import dataclass
from typing import Literal

from fedgen import plan as plans
from fedgen.errors import PlanError
from fedgen.plan import Plan

Group = Literal["bounds", "full", "adapters", "personal", "own"]


@dataclass(frozen=True)
class Method:
    """A named choice of parts: `settings` as after `--set`, in which words in braces are numbers of the plan.

    Those are {rank} and {ranks} (the adapter's rank, and halves of it down to 1), {steps} (of a client in a turn),
    {half} of these and {all} (those of a whole cohort).
    """

    title: str
    group: Group
    settings: tuple[str, ...]
    paper: str = ""
    departs: str = ""

    def over(self, plan: Plan) -> Plan:
        """The plan as this method has it."""
        steps, rank = plan.training.steps, plan.adapter.rank
        counted = any(word in line for line in self.settings for word in ("{half}", "{all}"))
        if counted and not (steps > 1 and plan.cohort.count):
            came = f"training.steps = {steps} and cohort.count = {plan.cohort.count}"
            raise PlanError(f"method '{self.title}': wanted steps (2 at least) and clients in numbers, came {came}")
        ranks = [rank >> fall for fall in range(rank.bit_length())]
        words = {"rank": rank, "ranks": ranks, "steps": steps, "half": steps // 2, "all": steps * plan.cohort.count}
        return plans.read(plan, [line.format(**words) for line in self.settings])


DITTO = ("personal.kind=keep", "personal.pull=0.1", "training.steps={half}", "personal.steps={half}")
PFEDME = (
    "training.proximal=1.0",
    "training.follow=0.5",
    "training.inner=2",
    "personal.kind=finetune",
    "personal.pull=1.0",
)
PERFEDAVG = ("training.ahead=0.01", "personal.kind=finetune")
METHODS: dict[str, Method] = {
    # ---- bounds
    "local": Method(
        "local only",
        "bounds",
        ("share.kind=halves", "share.half=none", "share.keep=true", "personal.kind=finetune"),
    ),
    "central": Method(
        "an adapter on all data in one place",
        "bounds",
        ("deal.pooled=true", "cohort.kind=uniform", "cohort.count=1", "training.steps={all}", "personal.kind=none"),
        departs="with the steps of a whole cohort; its optimizer begins anew each round, as a client's does",
    ),
    # ---- the whole model
    "fedavg-full": Method(
        "FedAvg, full model",
        "full",
        ("adapter.of=weights", "personal.kind=none"),
        "McMahan et al. 2017, arXiv 1602.05629",
    ),
    "fedprox-full": Method(
        "FedProx, full model",
        "full",
        ("adapter.of=weights", "training.proximal=0.01", "personal.kind=none"),
        "Li et al. 2020, arXiv 1812.06127",
    ),
    "fedadam-full": Method(
        "FedAdam, full model",
        "full",
        ("adapter.of=weights", "outer.kind=adam", "outer.lr=0.001", "personal.kind=none"),
        "Reddi et al. 2021, arXiv 2003.00295",
    ),
    "ditto-full": Method(
        "Ditto, full model",
        "full",
        ("adapter.of=weights", *DITTO),
        "Li et al. 2021, arXiv 2012.04221",
        "half of a turn's steps are the own model's",
    ),
    "pfedme-full": Method(
        "pFedMe, full model",
        "full",
        ("adapter.of=weights", *PFEDME),
        "Dinh et al. 2020, arXiv 2006.08848",
        "each inner step takes a batch of its own",
    ),
    "perfedavg-full": Method(
        "Per-FedAvg, full model",
        "full",
        ("adapter.of=weights", *PERFEDAVG),
        "Fallah et al. 2020, arXiv 2002.07948",
        "first order; the two halves of one batch take the place of two batches",
    ),
    # ---- adapters, one for all
    "fedit": Method(
        "FedIT",
        "adapters",
        ("aggregate.kind=average", "personal.kind=none"),
        "Zhang et al. 2024, arXiv 2305.05644",
    ),
    "fedprox": Method(
        "FedProx",
        "adapters",
        ("training.proximal=0.01", "personal.kind=none"),
        "Li et al. 2020, arXiv 1812.06127",
        "on the factors A and B",
    ),
    "fedadam": Method(
        "FedAdam",
        "adapters",
        ("outer.kind=adam", "outer.lr=0.003", "personal.kind=none"),
        "Reddi et al. 2021, arXiv 2003.00295",
        "on the factors A and B",
    ),
    "exact": Method(
        "exact average",
        "adapters",
        ("aggregate.kind=exact", "personal.kind=none"),
        departs="the best factors of the mean product; what the rank cannot hold is cut",
    ),
    "flora": Method(
        "FLoRA",
        "adapters",
        ("share.kind=increment", "aggregate.kind=stack", "aggregate.rank=128", "personal.kind=none"),
        "Wang et al. 2024, arXiv 2409.05976",
        "stacked on a factored global adapter of rank 128 at most, not merged; all draw one A, with orthonormal rows",
    ),
    "flexlora": Method(
        "FlexLoRA",
        "adapters",
        ("aggregate.kind=exact", "adapter.ranks={ranks}", "personal.kind=none"),
        "Bai et al. 2024, arXiv 2402.11505",
        "as exact where all ranks are one",
    ),
    "hetlora": Method(
        "HetLoRA",
        "adapters",
        (
            "aggregate.kind=padded",
            "aggregate.weight=norm",
            "adapter.ranks={ranks}",
            "share.prune=true",
            "training.press=0.01",
            "personal.kind=none",
        ),
        "Cho et al. 2024, arXiv 2401.06432",
        "a client prunes the last half of its ranks, or none",
    ),
    "ffa": Method(
        "FFA-LoRA",
        "adapters",
        ("share.kind=halves", "share.half=b", "personal.kind=none"),
        "Sun et al. 2024, arXiv 2403.12313",
    ),
    "rolora": Method(
        "RoLoRA",
        "adapters",
        ("share.kind=halves", "share.half=turns", "personal.kind=none"),
        "Chen et al. 2025, arXiv 2502.01755",
    ),
    "fedex": Method(
        "FedEx-LoRA",
        "adapters",
        ("share.kind=top", "aggregate.kind=residual", "personal.kind=none"),
        "Singhal et al. 2025, arXiv 2410.09432",
        "the residual is a frozen adapter of limited rank; the backbone is not touched",
    ),
    "fair": Method(
        "LoRA-FAIR",
        "adapters",
        ("aggregate.kind=fair", "personal.kind=none"),
        "Bian et al. 2025, arXiv 2411.14961",
        "the correction of B is ridge regression in closed form, where the paper descends a cosine",
    ),
    "fedsvd": Method(
        "FedSVD",
        "adapters",
        ("share.kind=halves", "share.half=b", "aggregate.kind=turned", "personal.kind=none"),
        "Lee et al. 2025, arXiv 2505.12805",
    ),
    "fedsb": Method(
        "Fed-SB",
        "adapters",
        ("share.kind=square", "adapter.rank=32", "personal.kind=none"),
        "Singhal et al. 2025, arXiv 2502.15436",
        "rank 32; the frames are drawn from a public seed, where the paper takes them from a first full gradient",
    ),
    # ---- one for each
    "fedsa": Method(
        "FedSA-LoRA",
        "personal",
        ("share.kind=halves", "share.half=a", "share.keep=true", "personal.kind=finetune"),
        "Guo et al. 2025, arXiv 2410.01463",
    ),
    "share-b": Method(
        "Fed-ALoRA (share B)",
        "personal",
        ("share.kind=halves", "share.half=b", "share.keep=true", "personal.kind=finetune"),
        "arXiv 2509.25414",
    ),
    "fedper": Method(
        "FedPer",
        "personal",
        ("share.kind=halves", "share.keep=true", "share.last=0.34", "personal.kind=finetune"),
        "Arivazhagan et al. 2019, arXiv 1912.00818",
        "the last adapters are the client's own, where the paper keeps the last layers",
    ),
    "ditto": Method(
        "Ditto",
        "personal",
        DITTO,
        "Li et al. 2021, arXiv 2012.04221",
        "the pull is on the factors A and B; half of a turn's steps are the own adapter's",
    ),
    "pfedme": Method(
        "pFedMe",
        "personal",
        PFEDME,
        "Dinh et al. 2020, arXiv 2006.08848",
        "each inner step takes a batch of its own",
    ),
    "perfedavg": Method(
        "Per-FedAvg",
        "personal",
        PERFEDAVG,
        "Fallah et al. 2020, arXiv 2002.07948",
        "first order; the two halves of one batch take the place of two batches",
    ),
    "apfl": Method(
        "APFL",
        "personal",
        (
            "personal.kind=beside",
            "personal.own={rank}",
            "personal.shared=0.5",
            "training.steps={half}",
            "personal.steps={half}",
        ),
        "Deng et al. 2020, arXiv 2003.13461",
        "the weight of the mixture is held fixed; it mixes products, not factors; half of a turn's steps each",
    ),
    "fedamp": Method(
        "FedAMP",
        "personal",
        (
            "cluster.kind=each",
            "exchange.kind=neighbours",
            "exchange.of=adapters",
            "exchange.on=factors",
            "exchange.temperature=0.1",
            "personal.kind=finetune",
        ),
        "Huang et al. 2021, arXiv 2007.03797",
        "attention by the cosine of products; a client goes on from its mixture, where the paper only pulls to it",
    ),
    "dual": Method(
        "dual adapter",
        "personal",
        ("personal.kind=beside", "personal.own={rank}", "training.steps={half}", "personal.steps={half}"),
        "Yang et al. 2024 (FedDPA)",
        "both adapters with weight one, for every input; half of a turn's steps each",
    ),
    "clustered": Method(
        "clustered",
        "personal",
        ("encode.kind=ngrams", "cluster.kind=kmeans", "exchange.kind=neighbours", "personal.kind=finetune"),
        departs="this library's clusters by encoded prompts, which exchange their steps",
    ),
    # ---- our own
    "fedgen-edge": Method(
        "fedgen-edge",
        "own",
        ("aggregate.kind=average", "personal.kind=finetune"),
        "arXiv 2511.11585",
        "as far as its abstract tells",
    ),
    "residual": Method(
        "residual",
        "own",
        ("share.kind=top", "aggregate.kind=residual", "personal.kind=finetune"),
        departs="as FedEx-LoRA, with a personal step, which moves the frozen part too",
    ),
    "stack": Method(
        "stack",
        "own",
        ("share.kind=increment", "aggregate.kind=stack", "personal.kind=finetune"),
        departs="as FLoRA, with the global adapter held to rank 32, all of which a personal step moves",
    ),
    "seeded": Method(
        "seeded",
        "own",
        ("share.kind=increment", "share.half=b", "personal.kind=finetune"),
    ),
    "thin": Method(
        "few bytes",
        "own",
        (
            "share.kind=halves",
            "share.half=both",
            "aggregate.kind=average",
            "adapter.ranks=[]",
            "allot.kind=dealt",
            'guards=["compress"]',
            "compress.bits=1",
            "compress.top=0.25",
            "compress.feedback=true",
            "compress.lossless=zstd",
            "compress.down=8",
            "personal.kind=finetune",
        ),
        "Karimireddy et al. 2019, arXiv 1901.09847 (signs with error feedback)",
        "the longest quarter of a change, as signs and a mean length for each 64; what is lost is added to the next",
    ),
}


def over(name: str, plan: Plan) -> Plan:
    """A plan as the method of this name has it."""
    if name not in METHODS:
        raise PlanError(f"method: '{name}' is not one of {', '.join(METHODS)}")
    return METHODS[name].over(plan)
