"""What an admin may do while the server runs: load, take away, pin and roll back adapters."""

import asyncio

from fedgen.errors import ServeError
from fedgen.serve.api.answers import Done
from fedgen.serve.api.asks import LoadAsk, UnloadAsk
from fedgen.serve.api.errors import RefusedError
from fedgen.serve.api.models import of_name
from fedgen.serve.api.service import Call
from fedgen.serve.house import Stand
from fedgen.serve.pool import load
from fedgen.serve.pool.entries import owner_of


async def load_adapter(call: Call, ask: LoadAsk) -> Done:
    """Serve the bundle of a folder under a name; in place of one of this name only if that is said."""
    return await asyncio.to_thread(_load, call, ask)


def _load(call: Call, ask: LoadAsk) -> Done:
    stand, name = of_name(call, ask.lora_name)
    if not call.who.owns(owner := owner_of(name)):
        said = f"lora_name: '{name}' is for a key of {owner}'s own; load it under another name"
        raise RefusedError(said, status=403, code="not_owner", param="lora_name")
    within = call.service.door.within
    if within is None:
        raise RefusedError(
            "lora_path: this server loads no bundles; start it with --adapters FOLDER", param="lora_path"
        )
    if not ask.load_inplace and any(entry.name == name for entry in stand.catalogue.visible(call.who)):
        wish = "say load_inplace to put another one in its place"
        raise RefusedError(f"lora_name: '{name}' is loaded already; {wish}", param="lora_name")
    try:
        verdict = stand.catalogue.publish(name, load(ask.lora_path, within), kind="loaded")
    except ServeError as error:
        raise RefusedError(str(error), param="lora_path") from None
    if not verdict.published:
        raise RefusedError(f"lora_name: '{name}' stays as it was: {verdict.reason}", param="lora_name")
    return Done(message=f"'{name}' is live: {verdict.reason}")


async def unload_adapter(call: Call, ask: UnloadAsk) -> Done:
    """Serve an adapter no more; rows at work finish under it."""
    stand, name = _found(call, ask.lora_name)
    if (kind := stand.catalogue.find(name, call.who).kind) != "loaded":
        said = f"lora_name: '{name}' is the run's own ({kind}), and stays; take out what was loaded by hand"
        raise RefusedError(said, param="lora_name")
    stand.catalogue.remove(name)
    return Done(message=f"'{name}' is served no more")


async def pin_adapter(call: Call, ask: None) -> Done:
    """Keep an adapter in memory."""
    stand, name = _found(call, call.named["name"])
    stand.catalogue.pin(name, True)
    return Done(message=f"'{name}' stays in memory")


async def unpin_adapter(call: Call, ask: None) -> Done:
    """Let an adapter make room when it is not used."""
    stand, name = _found(call, call.named["name"])
    stand.catalogue.pin(name, False)
    return Done(message=f"'{name}' may make room for others")


async def roll_back(call: Call, ask: None) -> Done:
    """Put the version before in an adapter's place."""
    stand, name = _found(call, call.named["name"])
    entry = stand.catalogue.roll_back(name)
    return Done(message=f"'{name}' is that of round {entry.round} again")


def _found(call: Call, asked: str) -> tuple[Stand, str]:
    """One that the admin may see: somebody else's is not there."""
    stand, name = of_name(call, asked)
    return stand, stand.catalogue.find(name, call.who).name
