"""Images in files: every format gives the same samples, read when they are needed."""

from __future__ import annotations

import concurrent.futures
import io
import json
import multiprocessing
import os
import pickle
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featlens import SampleSet
from featlens.errors import FeatlensError
from featlens.samples import LazyImages
from featlens.sources import lazy

LABELS = np.array([1, 0, 2, 1, 0, 2, 1])


@pytest.fixture
def pixels(rng):
    """Seven images (N, C, H, W) of 6 rows and 5 columns."""
    return rng.integers(0, 256, (7, 3, 6, 5), dtype=np.uint8)


def scaled(pixels):
    return (pixels / 127.5 - 1).astype(np.float32)


def png(image):
    """One image (C, H, W) as PNG."""
    out = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(out, "png")
    return out.getvalue()


def write_edm(target, pixels, labels):
    """EDM's layout in a folder, or in a zip."""
    names = [f"{i // 4:05d}/img{i:08d}.png" for i in range(len(pixels))]
    told = None if labels is None else [[n, int(label)] for n, label in zip(names, labels, strict=True)]
    files = {name: png(image) for name, image in zip(names, pixels, strict=True)}
    files["dataset.json"] = json.dumps({"labels": told}).encode()
    if target.suffix == ".zip":
        with zipfile.ZipFile(target, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return
    for name, data in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(data)


def write_hdf5(path, name="images", labels=None, **arrays):
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset(name, **arrays)
        if labels is not None:
            file.create_dataset(f"{Path(name).parent}/labels".removeprefix("./"), data=labels)


def cifar_batches(rng, sizes=(3, 2, 4, 1, 2, 3)):
    records = [
        np.concatenate([rng.integers(0, 10, (n, 1)), rng.integers(0, 256, (n, 3072))], 1) for n in sizes
    ]
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    return {name: data.astype(np.uint8) for name, data in zip(names, records, strict=True)}


def write_cifar(target, batches):
    if target.suffix != ".gz":
        target.mkdir()
        for name, data in batches.items():
            (target / name).write_bytes(data.tobytes())
        return
    with tarfile.open(target, "w:gz") as archive:
        # In the published archive the batches are not in order either.
        for name, data in sorted(batches.items(), key=lambda item: item[0][-6:]):
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = data.nbytes
            archive.addfile(info, io.BytesIO(data.tobytes()))


# --- the same images, whatever the file ---------------------------------------------------------------------


def test_every_format_gives_the_same_samples(tmp_path, pixels):
    nhwc = pixels.transpose(0, 2, 3, 1)
    floats = scaled(pixels)
    np.savez(tmp_path / "a.npz", images=pixels, labels=LABELS)
    np.savez_compressed(
        tmp_path / "b.npz", other=np.zeros(3), x=np.ascontiguousarray(nhwc), y=LABELS[:, None]
    )
    np.savez(tmp_path / "c.npz", images=floats.astype(np.float64), label=LABELS.astype(np.float32))
    write_hdf5(tmp_path / "d.h5", data=pixels, labels=LABELS)
    write_hdf5(tmp_path / "e.hdf5", "some/x", LABELS, data=nhwc, chunks=(2, 6, 5, 3), compression="gzip")
    write_hdf5(tmp_path / "f.h5", "data", LABELS, data=floats.astype(">f4"), chunks=(3, 3, 6, 5))
    write_edm(tmp_path / "edm", pixels, LABELS)
    write_edm(tmp_path / "edm.zip", pixels, LABELS)
    places = ["a.npz", "b.npz", "c.npz", "d.h5", "e.hdf5:some/x", "f.h5", "edm", "edm.zip"]
    every = [SampleSet.load(f"{tmp_path}/{place}", seed=4) for place in places]
    for samples in every:
        assert np.array_equal(samples.images[:], floats), samples.name
        assert np.array_equal(samples.labels, LABELS)
        assert samples.images[:].dtype == np.float32
    expected = SampleSet.from_arrays(floats, LABELS, seed=4).digest
    assert [samples.digest for samples in every] == [expected] * len(every)
    assert [s.name for s in every] == [place.partition(":")[0] for place in places]
    # Draws do not depend on the name either.
    assert len({SampleSet.load(f"{tmp_path}/{place}", n=3, seed=1).digest for place in places}) == 1


def test_an_array_has_no_labels_and_the_same_digest_as_unlabelled_files(tmp_path, pixels):
    np.save(tmp_path / "x.npy", pixels)
    np.save(tmp_path / "float.npy", pixels.astype(np.float32))
    write_edm(tmp_path / "edm.zip", pixels, None)
    for i, image in enumerate(pixels):
        (tmp_path / "flat").mkdir(exist_ok=True)
        (tmp_path / "flat" / f"{i}.PNG").write_bytes(png(image))
    every = [SampleSet.load(tmp_path / place) for place in ("x.npy", "edm.zip", "flat")]
    every.append(SampleSet.load(tmp_path / "float.npy", values="[0, 255]"))
    assert {samples.digest for samples in every} == {SampleSet.from_arrays(scaled(pixels)).digest}
    assert all(samples.labels is None for samples in every)


def test_greyscale_arrays_and_images_are_the_same(tmp_path, pixels):
    grey = pixels[:, :1]
    np.save(tmp_path / "nhw.npy", grey[:, 0])
    np.save(tmp_path / "nhwc.npy", grey.transpose(0, 2, 3, 1))
    write_edm(tmp_path / "edm", grey, None)
    every = [SampleSet.load(tmp_path / place) for place in ("nhw.npy", "nhwc.npy", "edm")]
    assert {samples.shape for samples in every} == {(1, 6, 5)}
    assert len({samples.digest for samples in every}) == 1


def test_drawn_samples_are_those_of_the_whole(tmp_path, pixels):
    np.savez_compressed(tmp_path / "a.npz", images=pixels, labels=LABELS)
    whole, some = (SampleSet.load(tmp_path / "a.npz", n, seed=2) for n in (None, 4))
    assert len(some) == 4 and sorted(set(some.ids)) == some.ids.tolist()
    assert np.array_equal(some.images[:], whole.images[some.ids])
    assert np.array_equal(some.labels, LABELS[some.ids])
    assert np.array_equal(some.noised(0.5, slice(1, 3)), whole.noised(0.5)[some.ids[1:3]])


@pytest.mark.parametrize(
    ("stored", "values", "expected"),
    [
        (np.array([0, 0.25, 1]), "[0,1]", [-1, -0.5, 1]),
        (np.array([0, 51.0, 255]), "[0,255]", [-1, -0.6, 1]),
        (np.array([0, 1, 1], dtype=np.uint8), "[0,1]", [-1, 1, 1]),
        (np.array([0, 1, 1], dtype=np.int64), "[0,1]", [-1, 1, 1]),
        (np.array([0, 1, 1], dtype=np.uint8), "[0,255]", [-1, 1 / 127.5 - 1, 1 / 127.5 - 1]),
        (np.array([0.1, 1, 0.5]), "[-1,1]", [0.1, 1, 0.5]),
        (np.array([-1.0005, 0, 1]), None, [-1.0005, 0, 1]),
        (np.array([-7, 0, 9.5], dtype=np.float16), "any", [-7, 0, 9.5]),
        (np.array([7, 0, 255], dtype=np.uint8), "any", [7, 0, 255]),
        (np.array([True, False, True]), None, [1, -1, 1]),
    ],
)
def test_numbers_become_pixels_as_they_are_said_to_be(tmp_path, stored, values, expected):
    np.save(tmp_path / "x.npy", np.broadcast_to(stored[:, None, None], (3, 2, 2)))
    samples = SampleSet.load(tmp_path / "x.npy", values=values)
    assert np.allclose(samples.images[:, 0, 0, 0], expected, atol=1e-6)


def test_folders_on_the_first_level_are_labels_if_every_image_lies_in_one(tmp_path, pixels):
    for name, image in zip(("b/0", "a/x/1", "c/2", "a/0"), pixels, strict=False):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / f"{name}.png").write_bytes(png(image))
    (tmp_path / "set" / "a" / ".hidden.png").write_bytes(b"no image")
    (tmp_path / "set" / "notes.txt").write_text("no image")
    samples = SampleSet.load(tmp_path / "set")
    assert samples.labels.tolist() == [0, 0, 1, 2]
    assert np.array_equal(samples.images[:], scaled(pixels[[3, 1, 0, 2]]))
    assert SampleSet.load(tmp_path / "set" / "a").labels is None
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in sorted((tmp_path / "set").rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path / "set"))
    assert SampleSet.load(tmp_path / "set.zip").labels is None
    (tmp_path / "set" / "top.png").write_bytes(png(pixels[5]))
    assert SampleSet.load(tmp_path / "set").labels is None


def test_linked_folders_are_read_and_circles_end(tmp_path, pixels):
    (tmp_path / "set").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "0.png").write_bytes(png(pixels[0]))
    for name, target in (("a", "there"), ("b", "there"), ("back", "set")):
        (tmp_path / "set" / name).symlink_to(tmp_path / target)
    assert SampleSet.load(tmp_path / "set").labels.tolist() == [0, 1]


def test_palettes_black_and_white_and_opaque_alpha_are_converted(tmp_path, pixels):
    folder = tmp_path / "set"
    folder.mkdir()
    image = Image.fromarray(pixels[0].transpose(1, 2, 0))
    opaque = image.convert("RGBA")
    few = image.quantize(8)
    opaque.save(folder / "a.png")
    few.save(folder / "b.png")
    image.save(folder / "c.tiff")
    image.save(folder / "d.bmp")
    image.save(folder / "e.webp", lossless=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "f.png", exif=exif)
    found = SampleSet.load(folder).images
    for row in (0, 2, 3, 4, 5):
        assert np.array_equal(found[row], scaled(pixels[0])), row
    assert np.array_equal(found[1], scaled(np.asarray(few.convert("RGB")).transpose(2, 0, 1)))
    (tmp_path / "bw").mkdir()
    Image.fromarray(pixels[0, 0] > 99).save(tmp_path / "bw" / "a.png")
    assert np.array_equal(SampleSet.load(tmp_path / "bw").images[0, 0], np.where(pixels[0, 0] > 99, 1, -1))


@pytest.mark.parametrize("place", ["cifar-10-binary.tar.gz", "cifar-10-batches-bin"])
def test_cifar_is_read_in_place(tmp_path, rng, place):
    batches = cifar_batches(rng)
    write_cifar(tmp_path / place, batches)
    records = np.concatenate(list(batches.values()))
    for split, chosen in (("all", slice(0, 15)), ("train", slice(0, 12)), ("test", slice(12, 15))):
        samples = SampleSet.load(tmp_path / place, split=split)
        assert samples.ids.tolist() == list(range(15))[chosen]
        assert np.array_equal(samples.labels, records[chosen, 0])
        assert np.array_equal(samples.images[:], scaled(records[chosen, 1:].reshape(-1, 3, 32, 32)))
    assert SampleSet.load(tmp_path / place).digest == SampleSet.load(tmp_path / place, split="all").digest


# --- laziness -----------------------------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path, rng, monkeypatch):
    """One location of each kind, of which nothing is kept in memory."""
    monkeypatch.setattr(lazy, "HELD_BYTES", 0)
    monkeypatch.setattr(lazy, "BLOCK_BYTES", 4 * 3 * 32 * 32 * 4)
    batches = cifar_batches(rng)
    images = np.concatenate(list(batches.values()))[:, 1:].reshape(-1, 3, 32, 32)
    np.save(tmp_path / "x.npy", images)
    np.savez_compressed(tmp_path / "x.npz", images=images)
    write_hdf5(tmp_path / "x.h5", data=images, chunks=(4, 3, 32, 32))
    write_edm(tmp_path / "x.zip", images, None)
    write_edm(tmp_path / "folder", images, None)
    for name in ("cifar-10-binary.tar.gz", "cifar-10-batches-bin"):
        write_cifar(tmp_path / name, batches)
    names = ["x.npy", "x.npz", "x.h5", "x.zip", "folder", "cifar-10-binary.tar.gz", "cifar-10-batches-bin"]
    return [tmp_path / name for name in names], scaled(images)


def test_images_are_indexed_like_an_array(places):
    paths, expected = places
    for path in paths:
        images = SampleSet.load(path).images
        assert isinstance(images, LazyImages) and not images.held
        assert (images.shape, images.ndim, len(images)) == (expected.shape, 4, 15)
        for key in (3, -1, slice(2, 9, 3), slice(None, None, -1), [4, 1, 4], expected[:, 0, 0, 0] > 0, ...):
            assert np.array_equal(images[key], expected[key]), (path, key)
        assert np.array_equal(images[2:4, 1, :3], expected[2:4, 1, :3])
        assert images[5:5].shape == (0, 3, 32, 32)
        assert np.array_equal(np.asarray(images), expected)
        assert np.array_equal(np.stack(list(images)), expected)
        with pytest.raises(IndexError):
            images[15]


def test_images_survive_pickling_forks_and_threads(places):
    paths, expected = places
    every = [SampleSet.load(path) for path in paths]
    for samples in every:
        again = pickle.loads(pickle.dumps(samples))
        assert np.array_equal(again.images[3:5], expected[3:5])
        assert again.digest == samples.digest
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for samples in every:
            rows = [i % 15 for i in range(60)]
            for row, image in zip(rows, pool.map(samples.images.__getitem__, rows), strict=True):
                assert np.array_equal(image, expected[row]), samples.name


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks only")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_processes_do_not_move_each_others_place_in_a_file(places):
    paths, expected = places
    context = multiprocessing.get_context("fork")

    def right(images, times):
        return all(np.array_equal(images[row % 15], expected[row % 15]) for row in range(times))

    def work(images, times):
        os._exit(0 if right(images, times) else 1)

    for path in paths:
        images = SampleSet.load(path).images
        images[0]  # the handle is open before the fork
        times = 1500 if path.suffix == ".npy" or path.is_dir() else 60
        child = context.Process(target=work, args=(images, times))
        child.start()
        assert right(images, times), path
        child.join(30)
        assert child.exitcode == 0, path


def test_small_sources_are_kept_and_do_not_need_the_file_again(tmp_path, pixels):
    np.save(tmp_path / "x.npy", pixels)
    seen = []
    samples = SampleSet.load(tmp_path / "x.npy", progress=lambda done, total: seen.append((done, total)))
    (tmp_path / "x.npy").unlink()
    assert samples.images.held
    assert np.array_equal(pickle.loads(pickle.dumps(samples)).images[2], scaled(pixels)[2])
    assert seen == [(7, 7)]


def test_what_is_not_kept_is_read_in_blocks(places, monkeypatch):
    path, seen = places[0][0], []
    sizes = []
    read = LazyImages._rows
    monkeypatch.setattr(LazyImages, "_rows", lambda self, rows: sizes.append(len(rows)) or read(self, rows))
    SampleSet.load(path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 15), (8, 15), (12, 15), (15, 15)]
    assert sizes == [4, 4, 4, 3]


def test_files_cut_off_after_loading_are_named(places):
    for path in places[0]:
        if path.is_file() and path.suffix != ".zip":
            samples = SampleSet.load(path)
            samples.images.close()
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            with pytest.raises(FeatlensError, match=re.escape(path.name)) as caught:
                samples.images[:]
            assert "\n" not in str(caught.value)


MEMORY = """
import re, sys
import numpy as np
from pathlib import Path
from featlens import SampleSet

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

SampleSet.load(sys.argv[2]).images[:]
before = peak()
samples = SampleSet.load(sys.argv[1])
assert not samples.images.held
for start in range(0, len(samples), 64):
    samples.images[start:start + 64]
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak there")
@pytest.mark.parametrize("kind", ["npy", "h5"])
def test_memory_does_not_grow_with_the_number_of_images(tmp_path, python, kind):
    for name, count in (("large", 25_000), ("small", 100)):
        images = np.zeros((count, 3, 32, 32), dtype=np.uint8)
        images[:, 0, 0, 0] = 255
        if kind == "npy":
            np.save(tmp_path / f"{name}.npy", images)
        else:
            write_hdf5(tmp_path / f"{name}.h5", data=images, chunks=(100, 3, 32, 32))
    result = python(MEMORY, tmp_path / f"large.{kind}", tmp_path / f"small.{kind}")
    assert result.returncode == 0, result.stderr
    # The file holds 73 MiB, which are 293 MiB as floats.
    assert float(result.stdout) < 50


def test_sources_do_not_import_torch(tmp_path, python, pixels):
    np.save(tmp_path / "x.npy", pixels)
    code = (
        "import sys; sys.modules['torch'] = None; from featlens import SampleSet; SampleSet.load(sys.argv[1])"
        "; assert not {'PIL', 'h5py'} & set(sys.modules)"
    )
    assert python(code, tmp_path / "x.npy").returncode == 0


def test_a_file_that_changes_after_it_was_loaded_is_not_read_on(tmp_path, monkeypatch):
    monkeypatch.setattr(lazy, "HELD_BYTES", 0)
    path = tmp_path / "x.npy"
    images = np.random.default_rng(0).integers(0, 256, (30, 3, 8, 8), dtype=np.uint8)
    np.save(path, images)
    samples = SampleSet.load(path)
    assert not samples.images.held
    assert samples.images[:2].shape == (2, 3, 8, 8)
    os.utime(path, ns=(1, 1))
    with pytest.raises(FeatlensError, match=r"x\.npy has changed since its images were loaded"):
        samples.images[:2]
