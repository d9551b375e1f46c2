"""What clients' devices are, and what a turn asks of one."""

from fedgen.devices.burden import Burden, burdens
from fedgen.devices.hardware import CLASSES, Hardware, nearest, read_hardware, said_again
from fedgen.devices.load import Load, Messages, Turn, load_of
from fedgen.devices.rules import DEVICES, Devices, Drawn, Named, Unknown

__all__ = [
    "CLASSES",
    "DEVICES",
    "Burden",
    "Devices",
    "Drawn",
    "Hardware",
    "Load",
    "Messages",
    "Named",
    "Turn",
    "Unknown",
    "burdens",
    "load_of",
    "nearest",
    "read_hardware",
    "said_again",
]
