"""Where images come from: folders, zips, arrays, HDF5, CIFAR-10, Hugging Face and drawn shapes.

Everything here works without torch. Pillow, h5py and datasets are imported by the sources that need them.
"""

from featlens.sources.lazy import LazyImages, NoImages
from featlens.sources.location import open_source
from featlens.sources.source import Reader, Source

__all__ = ["LazyImages", "NoImages", "Reader", "Source", "open_source"]
