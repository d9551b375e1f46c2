"""A machine's own desk: parcels of offers come in, parcels of replies go out; the backbone stays warm in between."""

import json
import re
import tomllib
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from fedgen import plan as plans
from fedgen.backbones import Backbone
from fedgen.data.deal import count
from fedgen.devices import Hardware
from fedgen.errors import BackboneError, ClientError
from fedgen.places import wire
from fedgen.places.device import Device, closed, holdings_of, plan_of, refusal, width_of
from fedgen.places.inprocess import facts_of, hold, labels_of, site_of
from fedgen.places.wire import Errand, Parcel, Present
from fedgen.plan import Plan
from fedgen.records import Failure, Offer, Reply
from fedgen.run import FACTS, SHELF
from fedgen.store import Shelf, write_whole
from fedgen.turns import Site, turns

NOWHERE = ".none"  # where the shelf of a site would lie that no run was given yet
SESSION = "session"  # the file that says which session of a server this machine has last worked for
RUN_NAME = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,200}")  # of a folder, which leads nowhere else


@dataclass(frozen=True)
class Ground:
    """What one plan comes to on this machine."""

    site: Site
    labels: Mapping[str, str]
    dropped: tuple[str, ...]
    facts: Mapping[str, Any]


class Desk:
    """Answers parcels for the clients of one machine; their own parts lie below `folder`, one folder a run."""

    def __init__(
        self,
        device: Device,
        folder: Path,
        note: Callable[[str], None] = lambda line: None,
        hardware: Hardware | None = None,
    ) -> None:
        self.device, self.folder, self.note, self.hardware = device, folder, note, hardware
        self._loaded: tuple[object, Backbone] | None = None
        self._ground: tuple[str, Ground] | None = None

    def answer(self, parcel: Parcel) -> Parcel:
        """The replies to a parcel; whatever goes wrong here is said in them."""
        errand, offers = wire.read_offers(parcel)
        if not RUN_NAME.fullmatch(errand.run):
            raise ClientError(f"run: wanted the name of a folder, came {errand.run!r}")
        if offers is None:
            return wire.introduced(self._present(errand))
        replies = self._replies(errand, offers)
        return wire.answered(replies)

    def _present(self, errand: Errand) -> Present:
        """Whom this machine holds for a plan, or why it takes no part."""
        try:
            ground = self._grounded(errand.plan)
        except Exception as error:  # noqa: BLE001  the server is told, and the log of this machine in full
            return Present(self.device.name, {}, {}, reason=self._reason(error))
        rows = {name: count(client.train) for name, client in sorted(ground.site.clients.items())}
        labels = ground.labels if "label" in self.device.consent.uses else {}
        backbone = ground.site.backbone.hash
        return Present(self.device.name, rows, labels, ground.dropped, backbone, hardware=self.hardware)

    def _replies(self, errand: Errand, offers: Sequence[Offer]) -> list[Reply]:
        now = datetime.now().astimezone()
        why_not = {use: refusal(self.device, use, now) for use in {offer.use for offer in offers}}
        asked = [offer for offer in offers if not why_not[offer.use]]
        done: dict[str, Reply] = {offer.client: offer.failed(why) for offer in offers if (why := why_not[offer.use])}
        try:
            if asked:
                ground = self._grounded(errand.plan)
                site, shelf = ground.site, self._shelf(errand, ground.facts)
                done |= {reply.client: reply for reply in self._turns(replace(site, shelf=shelf), asked)}
                shelf.flush()  # before the server can count on it
        except Exception as error:  # noqa: BLE001
            why = self._reason(error)
            done |= {offer.client: offer.failed(why) for offer in asked}
        return [self._named(done[offer.client]) for offer in offers]

    def _turns(self, site: Site, offers: Sequence[Offer]) -> list[Reply]:
        """All turns at once; if that fails each alone, so that one client does not take others along."""
        try:
            return turns(site, offers)
        except Exception as error:  # noqa: BLE001
            if len(offers) == 1:
                return [offers[0].failed(self._reason(error))]
            return [reply for offer in offers for reply in self._turns(site, [offer])]

    def _named(self, reply: Reply) -> Reply:
        """The reply, in which no model of this machine is said where it lies, but as the plan calls it."""
        if isinstance(reply, Failure):
            for name, path in self.device.backbones.items():
                reply = replace(reply, reason=reply.reason.replace(path, name))
        return reply

    def _reason(self, error: Exception) -> str:
        """What the server is told: of what is this machine's own, only that it failed; its log has the rest."""
        self.note("".join(traceback.format_exception(error)).rstrip())
        if isinstance(error, ClientError):
            return str(error)
        return f"{type(error).__name__} on '{self.device.name}'; its node.log says more"

    def _shelf(self, errand: Errand, facts: Mapping[str, Any]) -> Shelf:
        """The clients' own parts of this run, as of the last finished round that the server's session began with."""
        shelf, mark = Shelf(self.folder / errand.run / SHELF), self.folder / errand.run / SESSION
        known = mark.read_text("utf-8") if mark.exists() else ""
        if errand.session < known:  # it would go back behind what a newer one has finished
            raise ClientError(f"session {errand.session}: is over, the server is at {known}")
        if errand.session > known:
            shelf.rewind(errand.base)
            write_whole(mark, errand.session.encode())
        if not (mark.parent / FACTS).exists():  # what the adapters are of, for whoever takes them out
            write_whole(mark.parent / FACTS, json.dumps(facts).encode())
        shelf.settle(errand.done)
        return shelf

    def _grounded(self, text: str) -> Ground:
        """The plan's ground, made once and kept until another plan comes."""
        if self._ground is None or self._ground[0] != text:
            if self._ground is not None:
                self._ground[1].site.bank.close()
                self._ground = None
            self._ground = (text, self._made(self._own(plans.read(tomllib.loads(text)))))
        return self._ground[1]

    def _own(self, plan: Plan) -> Plan:
        """The plan as this device plays it; why it does not is the server's to know."""
        try:
            own = plan_of(self.device, plan)
        except BackboneError as error:
            raise ClientError(str(error)) from error
        if own.backbone.source.startswith("hub:") and (why := closed(self.device, datetime.now().astimezone())):
            raise ClientError(f"fetches nothing from a hub now: {why}")
        return own

    def _made(self, plan: Plan) -> Ground:
        if self._loaded is None or self._loaded[0] != plan.backbone:
            self._loaded = None  # room for the next
            self._loaded = (plan.backbone, plan.backbone.load())
            self.note(f"loaded the backbone '{self._loaded[1].name}' ({self._loaded[1].hash[:16]})")
        backbone = self._loaded[1]
        documents, shares = holdings_of(self.device, plan)
        held, dropped = hold(plan, backbone, documents, shares)
        training = replace(plan.training, cohort=width_of(self.device, plan.training, backbone))
        bank = plan.adapter.bank(backbone.network, plan.width)  # last: from here on its layers are the network's
        site = site_of(replace(plan, training=training), backbone, bank, held, Shelf(self.folder / NOWHERE))
        return Ground(site, labels_of(held, documents, shares), dropped, facts_of(plan, backbone))
