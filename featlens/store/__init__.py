"""Feature files: one HDF5 file with axes (sigma, sample, feature) per site; resumable and checksummed."""

from featlens.store.layout import FORMAT, VERSION, SiteInfo
from featlens.store.open import FileInUse
from featlens.store.reader import FeatureStore
from featlens.store.verify import Damage
from featlens.store.writer import FeatureWriter

__all__ = ["FORMAT", "VERSION", "Damage", "FeatureStore", "FeatureWriter", "FileInUse", "SiteInfo"]
