"""Images in [0, 1] with integer labels: the embedded digits, CIFAR-10, Imagenette, and any folder of images."""

from .folders import MissingDataError
from .images import Resize, check, checksum, load, resize, root, sizes

__all__ = ["MissingDataError", "Resize", "check", "checksum", "load", "resize", "root", "sizes"]
