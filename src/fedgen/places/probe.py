"""What this machine is: its memory, how fast it multiplies, and which class of devices that is nearest to."""

import time
from dataclasses import replace

import torch

from fedgen.devices import CLASSES, Hardware, nearest
from fedgen.places.device import MEGABYTE, Device, hours_of
from fedgen.places.inprocess import free_memory

SPAN, SIDE = 0.3, 384  # seconds that a probe takes at most, and the side of its matrices: 1.7 MB, a cache's worth
TRAINS = 0.3  # of what a matrix product reaches; training both embedded models on one core reached 0.25 to 0.31


def measured(device: Device, span: float = SPAN) -> Hardware:
    """The device as its owner calls it, or as it measures; links and chances, which it cannot, are its class's."""
    hours = hours_of(device.limits.hours)
    if device.kind:
        return replace(CLASSES[device.kind], hours=hours)
    memory = device.limits.memory * MEGABYTE or free_memory()
    speed = TRAINS * product_speed(span)
    return replace(CLASSES[nearest(memory, speed)], memory=memory, speed=speed, hours=hours)


def product_speed(span: float) -> float:
    """FLOP/s of matrix products, the best of those that this time has room for."""
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    matrix, out = torch.ones(SIDE, SIDE, device=where), torch.empty(SIDE, SIDE, device=where)
    began, least = time.perf_counter(), float("inf")
    while time.perf_counter() - began < span or least == float("inf"):
        start = time.perf_counter()
        torch.mm(matrix, matrix, out=out)
        out[0, 0].item()  # a GPU has not finished before
        least = min(least, time.perf_counter() - start)
    return 2 * SIDE**3 / least
