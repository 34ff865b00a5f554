"""Images that cannot be taken as they are: refused in one line that names the file and what to do."""

from __future__ import annotations

import io
import json
import pickle
import re
import struct
import zipfile
import zlib

import h5py
import numpy as np
import pytest
from PIL import Image

from featlens import SampleSet
from featlens.errors import FeatlensError, UsageError


@pytest.fixture
def refused(tmp_path):
    """Loads what must be refused; the line, which must hold the given words."""

    def check(location, *words, error=FeatlensError, **options):
        with pytest.raises(error) as caught:
            SampleSet.load(f"{tmp_path}/{location}", **options)
        line = str(caught.value)
        assert "\n" not in line and len(line) < 400 + len(str(tmp_path)), line
        for word in (str(location).partition(":")[0].partition("/")[0], *words):
            assert word in line, line
        return line

    return check


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (4, 3, 6, 5), dtype=np.uint8)


def picture(size=(5, 6), mode="RGB", **options):
    return Image.new(mode, size, **options)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width, height, depth, colour, lines):
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


# --- what is not there --------------------------------------------------------------------------------------


def test_what_is_not_there_or_of_no_known_kind(tmp_path, refused, images):
    refused("nothing", "no such file or folder", "or digits", error=UsageError)
    refused("x.h5:images", "no such file or folder", error=UsageError)
    for name, said in (("x.mat", "expected a folder, .zip"), ("x.png", "is one image; give the folder")):
        (tmp_path / name).write_bytes(b"x")
        refused(name, said, error=UsageError)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(images))
    refused("x.pkl", "pickles are not read", "save the images as .npy")
    with pytest.raises(UsageError, match="the location is empty"):
        SampleSet.load("")
    np.save(tmp_path / "x.npy", images)
    said = "unknown split 'test' of x.npy: choose from all, train, held-out"
    refused("x.npy", said, split="test", error=UsageError)
    refused("x.npy", "x.npy has 4 images, 5 asked for; ask for 1 to 4", n=5, error=UsageError)
    refused("x.npy", "4 images, 0 asked for", n=0, error=UsageError)
    with pytest.raises(UsageError, match=re.escape("unknown values '[0,2]': did you mean")):
        SampleSet.load(tmp_path / "x.npy", values="[0,2]")
    with pytest.raises(UsageError, match="values of digits are known"):
        SampleSet.load("digits", values="[0,1]")


# --- numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "dtype", "values", "said"),
    [
        (0, 1, "f4", None, "floats from 0 to 1, nothing below 0, expected [-1, 1]; say what they are"),
        (0, 255, "f4", None, "to 255 (image 1), expected [-1,1]; say what they are with values='[0,255]'"),
        (-3, 2, "f4", None, "from -3 to 2 (image 0), expected [-1,1]; scale them to [-1, 1], or take"),
        (-1, 1.002, "f8", None, "to 1.002 (image 1)"),
        (0, 2, "f4", "[0,1]", "to 2 (image 1), expected [0,1]; say what they are with values='[0,255]'"),
        (-1, 1, "f4", "[0,1]", "numbers from -1 to 1 (image 0), expected [0,1]"),
        (0, 300, "f4", "[0,255]", "expected [0,255]"),
        (0, 255, "u1", "[0,1]", "expected [0,1]; say what they are with values='[0,255]'"),
        (0, 1, "u1", None, "holds only 0 and 1 in 8 bits, expected 0 to 255"),
        (0, 65535, "u2", None, "holds uint16, which says nothing about the range"),
        (0, 65535, "u2", "[0,255]", "expected [0,255]"),
        (0, 1, "i8", None, "holds int64"),
        (0, 1, "?", "[0,255]", "holds booleans"),
        (0, 1, "c8", None, "holds complex64, expected numbers"),
        (0, 1, "U3", None, "holds <U3, expected numbers"),
        (-1, 1e300, "f8", "any", "image 1 of 'x.npy' holds NaN or infinite pixels"),
    ],
)  # fmt: skip
def test_numbers_that_are_not_what_they_seem(tmp_path, refused, low, high, dtype, values, said):
    stored = np.zeros((3, 2, 2))
    stored[0], stored[1] = low, high
    np.save(tmp_path / "x.npy", stored.astype(dtype))
    refused("x.npy", said, values=values)


def test_rows_that_are_nan_are_named_by_their_number(tmp_path, refused, rng):
    stored = rng.uniform(-1, 1, (20, 1, 2, 2)).astype(np.float32)
    stored[13, 0, 1, 1] = np.nan
    np.save(tmp_path / "x.npy", stored)
    refused("x.npy", "image 13 of 'x.npy' holds NaN or infinite pixels; clean the data first")


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((4, 3, 8, 3), "(4, 3, 8, 3) can be read in more than one way; bring it to (N, C, H, W)"),
        ((32, 32, 3), "can be read in more than one way"),
        ((2, 16, 16, 8), "can be read in more than one way"),
        ((4, 7), "expected images (N, C, H, W), (N, H, W, C) or (N, H, W), got shape (4, 7)"),
        ((), "got shape ()"),
        ((2, 2, 1, 3, 4, 4), "expected images"),
        ((0, 3, 8, 8), "holds no images"),
    ],
)
def test_shapes_that_mean_nothing_or_two_things(tmp_path, refused, shape, said):
    np.save(tmp_path / "x.npy", np.zeros(shape, dtype=np.uint8))
    refused("x.npy", said)


# --- arrays -------------------------------------------------------------------------------------------------


def test_arrays_that_would_run_code_or_lie_scattered(tmp_path, refused, images):
    np.save(tmp_path / "o.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    refused("o.npy", "pickled Python objects, which are not read (they can run code)")
    np.savez(tmp_path / "o.npz", images=np.array([{}, 1], dtype=object))
    refused("o.npz", "o.npz:images", "pickled Python objects")
    np.save(tmp_path / "f.npy", np.asfortranarray(images))
    refused("f.npy", "Fortran order", "numpy.ascontiguousarray")


def test_arrays_that_are_damaged(tmp_path, refused, images):
    np.save(tmp_path / "x.npy", images)
    whole = (tmp_path / "x.npy").read_bytes()
    for data, said in (
        (whole[:-7], f"expected {len(whole)} bytes for uint8 (4, 3, 6, 5), found {len(whole) - 7}"),
        (whole + b"1", "longer than its array"),
        (whole[:20], "not an array in .npy format"),
        (b"", "not an array in .npy format"),
        (b"x" * 200, "not an array in .npy format"),
        # 4 EiB are found to be missing before memory is asked for.
        (whole.replace(b"(4, 3, 6, 5)", b"(2**62,)    ")[:300], "not an array"),
        (whole.replace(b"(4, 3, 6, 5), }" + b" " * 20, b"(4611686018427387904, 3, 6, 5), }  "), "cut off"),
        (whole.replace(b"(4, ", b"(-4,"), "the header gives the shape (-4, 3, 6, 5)"),
    ):
        (tmp_path / "x.npy").write_bytes(data)
        refused("x.npy", said)


def test_npz_files_that_are_damaged_or_hold_something_else(tmp_path, refused, images):
    path = tmp_path / "x.npz"
    np.savez(path, pictures=images, more=images)
    refused(
        "x.npz",
        "none of the arrays images, x, arr_0",
        "x.npz:KEY, choose from pictures, more",
        error=UsageError,
    )
    refused("x.npz:picture", "no array 'picture'", "did you mean 'pictures'?", error=UsageError)
    for labels, said in ((np.eye(4), "one-hot"), ([0, 1], "4 images but 2 labels"), ([0.5] * 4, "got 0.5")):
        np.savez(path, images=images, labels=labels)
        refused("x.npz", "x.npz:labels", said, error=UsageError)
    np.savez(path, images=images)
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    refused("x.npz", "damaged or cut off")
    at = whole.index(images.tobytes()[:50])
    path.write_bytes(whole[: at + 5] + bytes([whole[at + 5] ^ 1]) + whole[at + 6 :])
    refused("x.npz", "damaged", "CRC")
    np.savez_compressed(path, images=np.full((500, 3, 6, 5), 255, dtype=np.uint8))
    whole = path.read_bytes()
    at = whole.rindex(b"PK\x01\x02") + 16
    path.write_bytes(whole[:at] + bytes(4) + whole[at + 4 :])
    refused("x.npz", "damaged", "CRC")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("images.npy", b"x")
    refused("x.npz", "packed in an unusual way")


def test_zip_members_that_say_to_be_larger_than_they_can_be(tmp_path, refused):
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "|u1", "fortran_order": False, "shape": (2**30, 8, 8)}
    )
    data = head.getvalue()
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("images.npy", data)
    raw = (tmp_path / "x.npz").read_bytes()
    at = raw.rindex(b"PK\x01\x02") + 24
    (tmp_path / "x.npz").write_bytes(raw[:at] + struct.pack("<I", 2**32 - 2) + raw[at + 4 :])
    refused("x.npz", "says to hold 4294967294 bytes", "which cannot be")


def test_hdf5_whose_numbers_lie_elsewhere_or_were_never_written(tmp_path, refused, images):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        good = file.create_dataset("good/all", data=images)
        layout = h5py.VirtualLayout(images.shape, "u1")
        layout[:] = h5py.VirtualSource(good)
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("external", images.shape, "u1", external=[(str(tmp_path / "y"), 0, images.size)])
        file["soft"] = h5py.SoftLink("/good")
        file["far"] = h5py.ExternalLink("other.h5", "/images")
        file.create_dataset("unwritten", images.shape, "u1")
        file.create_dataset("partly", (8, 3, 6, 5), "u1", chunks=(4, 3, 6, 5))[:4] = images
        file.create_dataset("text", data=[b"a", b"b"])
        file.create_dataset("objects", (3,), dtype=h5py.vlen_dtype(np.uint8))
        file.create_dataset("few/x", data=images)
        file.create_dataset("few/y", data=[0, 1])
        file.create_dataset("hot/x", data=images)
        file.create_dataset("hot/label", data=np.eye(4))
    assert len(SampleSet.load(f"{path}:good/all")) == 4
    for key, said in (
        ("virtual", "virtual or external"),
        ("external", "virtual or external"),
        ("soft/all", "'soft' is a link to '/good'"),
        ("far", "'far' is a link to '/images'"),
        ("unwritten", "found 0; it was never written whole"),
        ("partly", "expected 2 chunks for uint8 (8, 3, 6, 5), found 1"),
        ("text", "expected numbers"),
        ("objects", "expected numbers"),
        ("few/x", "few/y: 4 images but 2 labels"),
        ("hot/x", "hot/label: expected one integer label an image, got labels (4, 4); turn one-hot"),
        ("good", "no data set 'good' in "),
        ("nothing", "no data set 'nothing'"),
    ):
        refused(f"x.h5:{key}", said)
    refused("x.h5", "none of the arrays images, x, data", "x.h5:KEY", error=UsageError)
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], b"", b"x" * 2000):
        path.write_bytes(data)
        refused("x.h5", "not an HDF5 file, or damaged or cut off")


def test_hdf5_with_damaged_chunks(tmp_path, refused, images):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("x", data=images, chunks=(2, 3, 6, 5), fletcher32=True)
        offset = data.id.get_chunk_info(1).byte_offset
    whole = bytearray(path.read_bytes())
    whole[offset + 3] ^= 1
    path.write_bytes(whole)
    refused("x.h5", "x.h5:x: damaged or cut off")


# --- image files --------------------------------------------------------------------------------------------


def save(path, image, **options):
    path.parent.mkdir(exist_ok=True)
    image.save(path, **options)


def test_images_that_would_lose_or_invent_something(tmp_path, refused):
    deep = raw_png(5, 6, 16, 2, (b"\0" + bytes(5 * 6)) * 6)
    grey = io.BytesIO()
    Image.fromarray(np.zeros((6, 5), dtype=np.uint16)).save(grey, "png")
    gif, webp = io.BytesIO(), io.BytesIO()
    frames = [picture(), picture(color="red")]
    frames[0].save(gif, "png", save_all=True, append_images=frames[1:])
    frames[0].save(webp, "webp", save_all=True, append_images=frames[1:])
    keyed = io.BytesIO()
    picture().save(keyed, "png", transparency=(0, 0, 0))
    clear = io.BytesIO()
    picture(mode="RGBA", color=(1, 2, 3, 254)).save(clear, "png")
    cmyk = io.BytesIO()
    picture(mode="CMYK").save(cmyk, "jpeg")
    floats = io.BytesIO()
    picture(mode="F").save(floats, "tiff")
    for name, data, said in (
        ("deep.png", deep, "more than 8 bits a channel"),
        ("grey.png", grey.getvalue(), "more than 8 bits"),
        ("deep.ppm", b"P6 # 16 bits\n5 6\n65535\n" + bytes(180), "more than 8 bits"),
        ("float.tif", floats.getvalue(), "more than 8 bits"),
        ("moving.png", gif.getvalue(), "holds 2 images (animated or pages)"),
        ("moving.webp", webp.getvalue(), "holds 2 images"),
        ("keyed.png", keyed.getvalue(), "is transparent in places; put it on a background"),
        ("clear.png", clear.getvalue(), "is transparent in places"),
        ("cmyk.jpg", cmyk.getvalue(), "is CMYK, expected greyscale or RGB; convert it to RGB"),
        ("text.png", b"hello", "damaged, or not an image of the kind its name says"),
        ("empty.png", b"", "damaged"),
        ("bomb.png", raw_png(20_000, 20_000, 8, 2, b""), "so many pixels"),
        ("large.png", raw_png(10_000, 10_000, 8, 2, b""), "so many pixels"),
    ):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_bytes(data)
        refused(folder.name, f"{folder}/{name}: ", said)
        # Not only the first image is looked at.
        save(folder / "a.png", picture(mode="L" if name in ("grey.png", "float.tif") else "RGB"))
        refused(folder.name, f"{folder}/{name}: ")


def test_images_of_unequal_size_or_kind(tmp_path, refused):
    save(tmp_path / "set" / "a.png", picture())
    save(tmp_path / "set" / "b.png", picture((7, 6)))
    refused("set", "b.png: is 7 x 6 RGB, but the first image (a.png) is 5 x 6 RGB; bring all to one size")
    save(tmp_path / "set" / "b.png", picture(mode="L"))
    refused("set", "b.png: is 5 x 6 greyscale", "save all as greyscale or all as RGB")


def test_damaged_images_are_named(tmp_path, refused, rng):
    noise = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    for suffix in ("png", "jpg", "bmp", "webp", "tiff"):
        folder = tmp_path / suffix
        save(folder / f"a.{suffix}", noise)
        save(folder / f"b.{suffix}", noise)
        data = (folder / f"b.{suffix}").read_bytes()
        (folder / f"b.{suffix}").write_bytes(data[: len(data) // 2])
        refused(suffix, f"b.{suffix}: damaged")
    save(tmp_path / "flipped" / "a.png", noise, compress_level=0)
    data = bytearray((tmp_path / "flipped" / "a.png").read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / "flipped" / "a.png").write_bytes(data)
    refused("flipped", "a.png: damaged")


def test_folders_and_zips_without_images(tmp_path, refused):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "notes.txt").write_text("x")
    refused("set", "no images in it; expected files that end in png, jpg")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("notes.txt", "x")
    refused("set.zip", "no images in it")
    (tmp_path / "set.zip").write_bytes(b"x" * 100)
    refused("set.zip", "damaged or cut off")


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"labels": [["a.png", 0]]}, "no label for b/c.png"),
        ({"labels": [["a.png", 0], ["b/c.png", 1], ["d.png", 2]]}, "3 labels for 2 images (it names d.png)"),
        (
            {"labels": [["a.png", [1, 0]], ["b/c.png", [0, 1]]]},
            "got a list; turn one-hot labels into integers",
        ),
        ({"labels": [["a.png", "cat"], ["b/c.png", "dog"]]}, "got 'cat'; number the classes"),
        ({"labels": [["a.png", -1], ["b/c.png", 1]]}, "expected integer labels from 0, got -1"),
        ({"labels": {"a.png": 0}}, 'expected {"labels"'),
        ({"names": []}, 'expected {"labels"'),
        ([1], 'expected {"labels"'),
    ],
)
def test_labels_of_a_folder_that_do_not_fit(tmp_path, refused, told, said):
    save(tmp_path / "set" / "a.png", picture())
    save(tmp_path / "set" / "b" / "c.png", picture())
    (tmp_path / "set" / "dataset.json").write_text(json.dumps(told))
    refused("set", "dataset.json", said)
