"""Where images come from: folders, zips, arrays, HDF5 and CIFAR-10, read when they are needed.

Everything here works without torch. Pillow and h5py are imported by the sources that need them.
"""

from featlens.sources.lazy import LazyImages, NoImages
from featlens.sources.location import open_source
from featlens.sources.source import Reader, Source

__all__ = ["LazyImages", "NoImages", "Reader", "Source", "open_source"]
