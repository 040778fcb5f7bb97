"""Images in [0, 1] with integer labels: the embedded digits, CIFAR-10, Imagenette, and any folder of images."""

from .checks import check
from .folders import MissingDataError
from .images import checksum, classes, load, root, sizes
from .resizing import Resize, resize

__all__ = ["MissingDataError", "Resize", "check", "checksum", "classes", "load", "resize", "root", "sizes"]
