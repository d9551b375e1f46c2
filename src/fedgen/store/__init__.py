"""What lies on disk: whole files, adapters as bundles, and the shelf that keeps each client's own part."""

from fedgen.store.bundles import Card, load_bundle, save_bundle, save_change
from fedgen.store.files import read_bytes, save_folder, write_whole
from fedgen.store.shelf import Shelf

__all__ = ["Card", "Shelf", "load_bundle", "read_bytes", "save_bundle", "save_change", "save_folder", "write_whole"]
