"""Parts that disagree are refused, with the reason."""

from fedgen.aggregate import AGGREGATES, ANEW, FLAT, Average, takes
from fedgen.allot import Dealt, Needed
from fedgen.backbones import Diffusion
from fedgen.devices import Unknown
from fedgen.encode import Silent
from fedgen.errors import PlanError
from fedgen.exchange import Alone, Neighbours, SharedA, Toward
from fedgen.groups import Hierarchy
from fedgen.guards import GUARDS
from fedgen.outer import Plain
from fedgen.personal import Added, Beside, Keep
from fedgen.plan.parts import Plan, kind_of
from fedgen.share import Halves, Increment


def agree(plan: Plan) -> None:
    """Refuse parts that disagree, with the reason."""
    if not plan.name or "/" in plan.name or not plan.name.isprintable():
        raise PlanError(f"name: wanted a name that a folder can have, came {plan.name!r}")
    kind = kind_of("aggregate", plan.aggregate)
    if isinstance(plan.aggregate, ANEW) and plan.outer != Plain():
        raise PlanError(
            f"aggregate and outer disagree: '{kind}' is factored anew each round, so there is no straight way from the "
            "old factors to the new; use outer.kind = 'plain' with lr = 1, or aggregate.kind = 'average'"
        )
    if isinstance(plan.aggregate, FLAT) and plan.cluster.evidence != "none":
        raise PlanError(
            f"aggregate and cluster disagree: updates of '{kind}' begin at the one adapter of all, so the adapters of "
            "clusters have no mean by it; use cluster.kind = 'none', or aggregate.kind = 'exact'"
        )
    if plan.training.momentum and plan.training.optimizer != "sgd":
        raise PlanError("training.momentum: AdamW has its own; set training.optimizer = 'sgd', or momentum = 0")
    if plan.training.checkpoint and plan.training.dropout:
        raise PlanError("training.checkpoint and dropout: what is computed anew would drop out others; set one to 0")
    if plan.quality.features in ("resnet", "inception") and not plan.quality.weights:
        raise PlanError(f"quality.weights: {plan.quality.features} wants the file of its weights, came none")
    if plan.quality.pictures and not isinstance(plan.backbone, Diffusion):
        raise PlanError("quality.pictures: only a backbone of kind 'diffusion' draws any; set it to 0")

    if plan.place == "fleet":
        _agree_on_fleet(plan)
    if plan.place == "fleet" or plan.clocked:
        _agree_on_buffer(plan)
    _agree_on_clusters(plan)
    _agree_on_share(plan)
    _agree_on_guards(plan)
    if plan.adapter.of == "weights":
        _agree_on_weights(plan)


def _agree_on_fleet(plan: Plan) -> None:
    if plan.quality.pictures:
        raise PlanError("quality.pictures: are held against the clients' own, which stay on their devices; set it to 0")
    if plan.devices != Unknown():
        raise PlanError("devices: a fleet's nodes say themselves what they are; set devices.kind = 'none'")
    if plan.deal.pooled:
        raise PlanError("deal.pooled: clients' rows stay on their devices; leave it away, or use place = 'inprocess'")


def _agree_on_buffer(plan: Plan) -> None:
    if plan.fleet.buffer and plan.fleet.spare:
        raise PlanError("fleet.buffer and fleet.spare: without rounds nobody is waited for in vain; set spare = 0")
    if plan.fleet.buffer and not (type(plan.aggregate) is Average and isinstance(plan.share, Halves)):
        raise PlanError("fleet.buffer: late changes are laid on newer factors; use aggregate.kind = 'average'")
    if plan.fleet.buffer and plan.cluster.evidence in ("losses", "adapters"):
        raise PlanError("fleet.buffer: clusters that rounds form need rounds; set buffer = 0")


def _agree_on_share(plan: Plan) -> None:
    share, aggregate = plan.share, kind_of("aggregate", plan.aggregate)
    if not takes(type(plan.aggregate), share.sends):
        kind, others = kind_of("share", share), [name for name, rule in AGGREGATES.items() if takes(rule, share.sends)]
        raise PlanError(
            f"share and aggregate: what share.kind = '{kind}' sends so is not for aggregate.kind = '{aggregate}'; "
            f"choose {' or '.join(others)}"
        )
    if not isinstance(share, Halves) and plan.outer != Plain():
        raise PlanError("share and outer: what is sent is no whole adapter; use outer.kind = 'plain' with lr = 1")
    if isinstance(plan.personal, Keep) and plan.personal.pull and isinstance(plan.aggregate, ANEW):
        raise PlanError("personal.pull and aggregate: factors made anew are none to be pulled to; set pull = 0")
    if plan.training.press and not share.prune:
        raise PlanError("training.press: presses ranks that clients give up; set share.prune = true")
    if share != Halves() and plan.cluster.evidence != "none":
        raise PlanError("share and cluster: clusters exchange whole adapters; let share.kind = 'halves' send both")
    if share.keep and plan.personal.each_round:
        raise PlanError("share.keep and personal: both keep an own adapter; use personal.kind = 'finetune' or 'none'")
    if plan.mixed:
        _agree_on_ranks(plan, aggregate)


def _agree_on_ranks(plan: Plan, aggregate: str) -> None:
    if not all(1 <= rank <= plan.adapter.rank for rank in plan.adapter.ranks):
        odd = next(rank for rank in plan.adapter.ranks if not 1 <= rank <= plan.adapter.rank)
        raise PlanError(f"adapter.ranks: wanted ranks from 1 to adapter.rank = {plan.adapter.rank}, came {odd}")
    said = "adapter.ranks" if plan.adapter.ranks else "allot"
    if aggregate not in ("exact", "changes", "padded", "stack"):
        raise PlanError(f"{said}: several ranks want aggregate.kind = 'exact', 'changes', 'padded' or 'stack'")
    if not isinstance(plan.allot, Dealt) and isinstance(plan.devices, Unknown) and plan.place != "fleet":
        kind = kind_of("allot", plan.allot)
        raise PlanError(f"allot: '{kind}' goes by clients' devices, and devices.kind = 'none' knows none; name them")
    if isinstance(plan.allot, Needed) and aggregate not in ("exact", "changes"):
        raise PlanError("allot: ranks that differ by layer want aggregate.kind = 'changes' or 'exact'")
    if isinstance(plan.allot, Needed) and plan.share.prune:
        raise PlanError(
            "allot and share.prune: by need ranks differ by layer, and what is pruned has one; set it to false"
        )
    if isinstance(plan.allot, Needed) and plan.personal.each_round:
        raise PlanError("allot and personal: an own adapter has one rank in all layers; use personal.kind = 'finetune'")
    _agree_on_clusters_of_ranks(plan, said, aggregate)


def _agree_on_clusters_of_ranks(plan: Plan, said: str, aggregate: str) -> None:
    rule = plan.exchange
    factored = isinstance(rule, SharedA) or (isinstance(rule, Neighbours | Toward) and rule.on == "factors")
    if plan.cluster.evidence != "none" and aggregate not in ("exact", "changes"):
        raise PlanError(f"{said}: clusters with several ranks want aggregate.kind = 'exact' or 'changes'")
    if plan.cluster.evidence == "adapters":
        raise PlanError(f"{said}: adapters of several ranks cannot be compared; set cluster.by = 'profiles'")
    if plan.hierarchy.split:
        raise PlanError(f"{said}: steps of several ranks cannot be told apart; set hierarchy.split = 0")
    if factored:
        raise PlanError(f"{said}: several ranks have no factors in common; set exchange.on = 'products'")


def _agree_on_guards(plan: Plan) -> None:
    order = [name for name in GUARDS if name in plan.guards]
    if odd := set(plan.guards) - GUARDS.keys():
        raise PlanError(f"guards: '{min(odd)}' is not one of {', '.join(GUARDS)}")
    if list(plan.guards) != order:
        wish = f"each once, in the order of a client's way out: {', '.join(order)}"
        raise PlanError(f"guards: wanted {wish}; came {', '.join(plan.guards)}")
    if unused := [name for name, kind in GUARDS.items() if name not in plan.guards and getattr(plan, name) != kind()]:
        raise PlanError(f"{unused[0]}: is set, and no guard is so called; add it to guards")
    if "compress" not in plan.guards:
        return
    if plan.share.prune:
        raise PlanError("compress and share.prune: both ends must know the shapes; set share.prune = false")
    if plan.compress.feedback and (why := _strays(plan)):
        raise PlanError(f"compress.feedback: {why}, so what is kept would be added to another thing; set it to false")


def _strays(plan: Plan) -> str:
    """Why the factors of one round are none of the next; nothing if they are."""
    kind, rule = kind_of("aggregate", plan.aggregate), plan.exchange
    products = isinstance(rule, Neighbours | Toward) and rule.on == "products"
    reasons = {
        "share.kind = 'increment' draws A anew each round": isinstance(plan.share, Increment),
        f"aggregate.kind = '{kind}' makes new factors each round": isinstance(plan.aggregate, ANEW),
        "exchange.on = 'products' makes new factors each round": products,
        "clients of several ranks are offered new factors each round": plan.mixed,
    }
    return next((why for why, so in reasons.items() if so), "")


def _agree_on_clusters(plan: Plan) -> None:
    evidence, hierarchy, rule = plan.cluster.evidence, plan.hierarchy, plan.exchange
    if evidence == "profiles" and isinstance(plan.encode, Silent):
        raise PlanError("cluster: goes by profiles, and encode.kind = 'none' makes none; choose 'ngrams' or another")
    if evidence == "none" and (plan.exchange != Alone() or hierarchy != Hierarchy()):
        what = "hierarchy" if plan.exchange == Alone() else "exchange"
        raise PlanError(f"{what}: is for clusters, and cluster.kind = 'none' makes none; choose another cluster.kind")
    takes = (rule.of, rule.on) if isinstance(rule, Neighbours | Toward) else ("", "")
    if takes[1] == "products" and not isinstance(plan.outer, Plain):
        raise PlanError("exchange and outer: products are factored anew, which an outer step with memory cannot follow")
    if takes == ("steps", "factors") and isinstance(plan.aggregate, ANEW):
        raise PlanError(
            "exchange and aggregate: exact products are factored anew, so factors take no steps; use products"
        )
    if isinstance(plan.personal, Added) and plan.personal.whole and evidence == "none":
        raise PlanError("personal.whole: without clusters the global adapter is all there is below; set it to 0")
    if hierarchy.every and evidence not in ("profiles", "adapters"):
        raise PlanError(f"hierarchy.every: nothing is formed anew by {evidence}; set it to 0")


def _agree_on_weights(plan: Plan) -> None:
    on_pairs = {
        "aggregate": not isinstance(plan.aggregate, Average),
        "exchange": plan.exchange != Alone(),
        "cluster": plan.cluster.evidence == "adapters",
        "hierarchy.merge": plan.hierarchy.merge > 0,
        "hierarchy.split": plan.hierarchy.split != 0,
        "personal": isinstance(plan.personal, Added | Beside),
        "share": plan.share != Halves(),
        "adapter.ranks": bool(plan.adapter.ranks),
        "allot": not isinstance(plan.allot, Dealt),
        "adapter.last": plan.adapter.last < 1,
        "training.dropout": plan.training.dropout > 0,
        "training.press": plan.training.press > 0,
    }
    if found := [name for name, wants_pairs in on_pairs.items() if wants_pairs]:
        raise PlanError(
            f"adapter.of and {found[0]}: as set, {found[0]} works on pairs of factors, and 'weights' has none; "
            f"leave {found[0]} at its default, or set adapter.of = 'pairs'"
        )
