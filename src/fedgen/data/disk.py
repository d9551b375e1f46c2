"""Rows that memory has no room for: the same tensors, backed by a temporary file that nothing but they can see."""

import tempfile
from typing import IO

import torch
from torch import Tensor

from fedgen.errors import DataError
from fedgen.records import Client

ALIGNED = 64  # bytes; a tensor of any type may begin at a multiple


def size(client: Client) -> int:
    """The bytes of a client's rows."""
    tables = (client.train, client.valid, client.test)
    return sum(value.numel() * value.element_size() for rows in tables for value in rows.values())


def on_disk(client: Client) -> Client:
    """The client with its rows in one file, of which the system keeps in memory what is in use."""
    tables = (client.train, client.valid, client.test)
    try:
        with tempfile.NamedTemporaryFile(
            prefix="fedgen-rows-"
        ) as file:  # loses its name here, lives as long as the rows
            places = [{key: _write(file, value) for key, value in rows.items()} for rows in tables]
            file.flush()
            whole = torch.from_file(file.name, shared=True, size=file.tell(), dtype=torch.uint8)
    except (OSError, RuntimeError) as error:
        wish = f"{size(client)} bytes on disk in {tempfile.gettempdir()}"
        remedy = "raise deal.memory, or name a larger folder in TMPDIR"
        raise DataError(f"client '{client.name}': wanted {wish}, came '{error}'; {remedy}") from error
    train, valid, test = (
        {key: _view(whole, start, rows[key]) for key, start in starts.items()}
        for rows, starts in zip(tables, places, strict=True)
    )
    return Client(client.name, train, valid, test, client.asks)


def _write(file: IO[bytes], value: Tensor) -> int:
    """Where the value begins in the file."""
    file.write(bytes(-file.tell() % ALIGNED))
    start = file.tell()
    file.write(value.contiguous().view(-1).view(torch.uint8).numpy().data)
    return start


def _view(whole: Tensor, start: int, like: Tensor) -> Tensor:
    return whole[start : start + like.numel() * like.element_size()].view(like.dtype).view(like.shape)
