"""Hostile pickles: nothing of them runs, they are refused by name, and they cost no more than their size."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featlens.errors import FeatlensError
from featlens_trainers.convert import read_edm
from featlens_trainers.convert.machine import OPERATIONS, Inspection, Machine
from featlens_trainers.convert.storages import read_storage
from tests.convert_helpers import UNET, Persistent, denoiser_of, edm_modules, write_edm


@pytest.fixture
def sentinel(tmp_path):
    """A file that a payload would make."""
    path = tmp_path / "ran"
    yield path
    assert not path.exists(), "code of the file was run"


class Touch:
    """Makes the file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def refused(tmp_path, blob):
    path = tmp_path / "hostile.pkl"
    path.write_bytes(blob)
    with pytest.raises(FeatlensError) as caught:
        read_edm(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and line.isprintable() and len(line) < len(str(path)) + 1500
    return line


def test_the_payload_is_one(tmp_path):
    pickle.loads(pickle.dumps(Touch(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_call_is_not_made_and_its_name_is_listed(tmp_path, sentinel, protocol):
    line = refused(tmp_path, pickle.dumps({"ema": Touch(sentinel)}, protocol))
    assert (
        f"refers to what no network of EDM needs: {os.system.__module__}.system. None of it was run" in line
    )


def test_all_unknown_names_are_listed_wherever_they_lie(tmp_path, sentinel):
    hidden = torch.ones(2)
    nested = pickle.dumps(Touch(sentinel), 2)
    with edm_modules():
        body = pickle.dumps(
            {
                "a": Touch(sentinel),
                "b": collections.Counter("x"),
                "c": Persistent("Any", {"deep": [(collections.deque(), hidden)]}),
            },
            4,
        )
    line = refused(tmp_path, body)
    for name in ("posix.system", "collections.Counter", "collections.deque"):
        assert name in line
    line = refused(tmp_path, storage_call(nested))
    assert "posix.system" in line


def storage_call(blob, before=b""):
    """``_load_from_bytes(blob)`` as pickle."""
    size = struct.pack("<I", len(blob))
    return b"\x80\x03" + before + b"ctorch.storage\n_load_from_bytes\nB" + size + blob + b"\x85R."


TRICKS = {
    "inst": lambda word: b"\x80\x02(" + text(word) + b"iposix\nsystem\n.",
    "obj": lambda word: b"\x80\x02(cposix\nsystem\n" + text(word) + b"o.",
    "newobj": lambda word: b"\x80\x02cposix\nsystem\n" + text(word) + b"\x85\x81.",
    "newobj_ex": lambda word: b"\x80\x04cposix\nsystem\n" + text(word) + b"\x85}\x92.",
    "stack global by memo": lambda word: (
        b"\x80\x04"
        + text("posix")
        + b"\x94"
        + text("system")
        + b"\x940h\x00h\x01\x93"
        + text(word)
        + b"\x85R."
    ),
    "dotted name": lambda word: b"\x80\x04" + text("posix.system.__class__") + text("__call__") + b"\x93.",
    "build": lambda word: (
        b"\x80\x02cposix\nsystem\n)\x81}" + text("__setstate__") + b"cposix\nsystem\nsb" + text(word) + b"b."
    ),
    "after stop": lambda word: b"\x80\x02N.cposix\nsystem\n" + text(word) + b"\x85R.",
    "reconstructor": lambda word: (
        b"\x80\x02ccopyreg\n_reconstructor\ncposix\nsystem\nc__builtin__\nobject\nN\x87R."
    ),
    "getattr": lambda word: b"\x80\x02c__builtin__\ngetattr\ncposix\nsystem\n" + text(word) + b"\x86R.",
    "eval": lambda word: b"\x80\x02cbuiltins\neval\n" + text("__import__('os')") + b"\x85R.",
    "from the list": lambda word: b"\x80\x02ccollections\nOrderedDict.__reduce__\n)R.",
}


@pytest.mark.parametrize("trick", TRICKS)
def test_every_way_to_name_and_call_is_inert(tmp_path, sentinel, trick):
    line = refused(tmp_path, TRICKS[trick](f"touch {sentinel}"))
    if trick != "after stop":
        assert "refers to what no network of EDM needs" in line


@pytest.mark.parametrize(
    ("blob", "expected"),
    [
        (b"\x80\x02\x82\x01.", "uses the instruction EXT1"),
        (b"\x80\x02\x84\x01\x00\x00\x00.", "uses the instruction EXT4"),
        (b"\x80\x02Pfile\n.", "refers to data outside itself"),
        (b"\x80\x02NQ.", "refers to data outside itself"),
        (b"\x80\x05\x97.", "uses the instruction NEXT_BUFFER"),
        (b"\x80\x02}]}s.", "damaged or cut short near byte 5 (a list as a key)"),
        (b"\x80\x02}" + b")\x85\x85Ns.", "(a tuple as a key)"),
        (b"\x80\x02NNR.", "(a call of a NoneType)"),
        (b"\x80\x02cdnnlib.util\nEasyDict\n)Rh\x05.", "damaged or cut short"),
        (b"\x80\x02\x8b" + struct.pack("<I", 9999) + b"\x01" * 9999 + b".", "found one of thousands of bits"),
        (b"\x80\x02L" + b"9" * 100_000 + b"L\n.", "damaged"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.", "damaged or cut short"),
        (b"\x80\x04B" + struct.pack("<I", 2**31) + b"abc.", "damaged or cut short"),
        (b"\x80\x04\x95" + struct.pack("<Q", 2**63 - 1) + b"N.", "expected a network, found a NoneType"),
        (b"\x80\x02Nr" + struct.pack("<I", 2**32 - 1) + b".", "expected a network, found a NoneType"),
        (b"\x80\x02Np" + b"9" * 30 + b"\n.", "a place beyond all places"),
        (b"\x80\x02" + b"(" * 1000 + b".", "damaged"),
        (b"\x80\x02c" + b"a" * 5000 + b"\nb\n.", "a name of more than 200 letters"),
        (b"\x80\x02cposix\n\x1b[31msystem\x07\n.", "posix.?[31msystem?"),
        (b"\x80\x02cnumpy\ndtype\n" + text("O8") + b"\x85R.", "values of numpy that are not plain numbers"),
        (b"\x80\x02c_codecs\nencode\n" + text("a") + text("rot13") + b"\x86R.", "in an unknown encoding"),
        (b"\x80\x02ctorch._utils\n_rebuild_parameter\nN\x85R.", "a parameter without values"),
        (b"\x80\x02", "damaged or cut short"),
        (b"\x80\x02N", "damaged or cut short"),
    ],
)  # fmt: skip
def test_instructions_that_no_network_needs_and_damage(tmp_path, blob, expected):
    assert expected in refused(tmp_path, blob)


# --- cost ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "blob",
    [
        b"\x80\x02" + b"]" * 80_000 + b"a" * 79_999 + b".",
        b"\x80\x02)" + b"\x85" * 100_000 + b".",
        b"\x80\x02}" + (text("a") + b"}") * 40_000 + b"s" * 40_000 + b".",
        # Every list holds the one before it twice.
        b"\x80\x02]" + b"q\x00]h\x00ah\x00a" * 15_000 + b".",
    ],
    ids=["lists", "tuples", "dicts", "doubling"],
)
def test_deep_nesting_neither_crashes_nor_takes_long(tmp_path, blob):
    refused(tmp_path, blob)


def test_a_program_without_end_is_cut(tmp_path):
    assert f"expected at most {OPERATIONS} instructions" in refused(
        tmp_path, b"\x80\x02" + b"N0" * OPERATIONS
    )


def test_the_same_data_is_not_copied_again_and_again(tmp_path):
    many = b"]q\x00(" + b"K\x01" * 50_000 + b"e0"
    blob = b"\x80\x02" + many + b"c__builtin__\nlist\nq\x01" + b"h\x01h\x00\x85R0" * 1000 + b"."
    assert "the same data many times over" in refused(tmp_path, blob)
    huge = b"X" + struct.pack("<I", 10**6) + b"x" * 10**6 + b"q\x000"
    blob = b"\x80\x02" + huge + b"c_codecs\nencode\nq\x01" + b"h\x01h\x00\x85R0" * 100 + b"."
    assert "the same data many times over" in refused(tmp_path, blob)


def tensor(size, stride, values=4, offset=0):
    buffer = io.BytesIO()
    torch.save(torch.ones(values).storage(), buffer, _use_new_zipfile_serialization=False)
    blob = buffer.getvalue()
    numbers = b"".join(
        b"(" + b"".join(b"\x8a\x07" + n.to_bytes(7, "little") for n in part) + b"t" for part in (size, stride)
    )
    head = b"\x80\x03ctorch._utils\n_rebuild_tensor_v2\n(" + storage_call(blob)[2:-1]
    return head + b"\x8a\x07" + offset.to_bytes(7, "little") + numbers + b"\x89}tR."


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_tensors_reach_no_further_than_their_values(tmp_path):
    assert "a network, found a StoredTensor" in refused(tmp_path, tensor((2, 2), (2, 1)))
    for size, stride, offset, expected in (
        ((2, 3), (3, 1), 0, "goes beyond its values"),
        ((2, 2), (2, 1), 1, "goes beyond its values"),
        ((10**9, 10**3), (0, 0), 0, "shows the same value several times"),
        ((3, 3), (1, 1), 0, "shows the same value several times"),
        ((2**50,), (1,), 0, "a tensor without values"),
        ((1,) * 20, (1,) * 20, 0, "a tensor of 20 dimensions"),
        ((2,), (1, 1), 0, "a tensor of 1 dimensions and 2 strides"),
    ):
        assert expected in refused(tmp_path, tensor(size, stride, offset=offset))


# --- storages -----------------------------------------------------------------------------------------------


def saved(value, zipped=False):
    buffer = io.BytesIO()
    torch.save(value.storage() if isinstance(value, torch.Tensor) else value, buffer,
               _use_new_zipfile_serialization=zipped)  # fmt: skip
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int64", "uint8", "bool"])
def test_storages_of_every_type_and_form_are_read_as_torch_wrote_them(dtype, zipped):
    values = torch.arange(6).to(getattr(torch, dtype))
    found = read_storage(saved(values, zipped), Inspection(10**6))
    assert (found.dtype, len(found)) == (dtype, 6)
    assert bytes(found.data) == values.view(torch.uint8).numpy().tobytes()


def archive(**members):
    buffer = io.BytesIO()
    compression = zipfile.ZIP_DEFLATED if members.pop("packed", False) else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, data in members.items():
            file.writestr("archive/" + name.replace("__", "/").replace("_pkl", ".pkl"), data)
    return buffer.getvalue()


def reference(length):
    """Pickle of a persistent id of a float storage."""
    head = b"\x80\x02(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    return head + b"J" + struct.pack("<i", length) + b"tQ."


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"PK\x03\x04 no archive",
        archive(data_pkl=b"N."),
        archive(data_pkl=reference(4), data__0=b"\0" * 15),
        archive(data_pkl=reference(-1), data__0=b""),
        archive(data_pkl=reference(1)),
        archive(data_pkl=reference(1), data__0=b"\0" * 4, byteorder=b"big"),
        archive(data_pkl=reference(10**8), data__0=b"\0" * 10**6, packed=True),
        pickle.dumps(0x1950A86A20F9469CFC6C, 2),
        pickle.dumps(0x1950A86A20F9469CFC6C, 2)
        + pickle.dumps(1001, 2)
        + pickle.dumps({"little_endian": False}, 2),
    ],
    ids=range(10),
)
def test_nested_bytes_that_are_no_storage(tmp_path, blob):
    assert "damaged" in refused(tmp_path, storage_call(blob))


def test_an_evil_pickle_inside_a_storage_is_inert(tmp_path, sentinel):
    payload = pickle.dumps(Touch(sentinel), 2)
    for blob in (payload, archive(data_pkl=payload), pickle.dumps(0x1950A86A20F9469CFC6C, 2) + payload):
        assert "posix.system" in refused(tmp_path, storage_call(blob))


# --- damage -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write_edm(tmp_path_factory.mktemp("edm") / "good.pkl", denoiser_of(UNET)).read_bytes()


def survives(path: Path, blob: bytes) -> None:
    path.write_bytes(blob)
    try:
        read_edm(path).denoiser()
    except FeatlensError as error:
        line = str(error)
        assert line.isprintable() and str(path) in line and len(line) < len(str(path)) + 1500, line


@settings(max_examples=20)
@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_cut_file_is_refused(good, tmp_path_factory, cut):
    path = tmp_path_factory.getbasetemp() / "cut.pkl"
    path.write_bytes(good[: int(cut * len(good))])
    with pytest.raises(FeatlensError, match="damaged"):
        read_edm(path)


@settings(max_examples=40)
@given(
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4
    )
)
def test_changed_bytes_never_crash_it(good, tmp_path_factory, changes):
    blob = bytearray(good)
    for place, value in changes:
        blob[int(place * len(blob))] = value
    survives(tmp_path_factory.getbasetemp() / "changed.pkl", bytes(blob))


OPCODES = [
    bytes([code])
    for code in b"(.012FIJKLMNPQRSTUVXabcdeghijlopqrstu}]){"
    b"\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8c\x8f\x90\x91\x93\x94\x95"
]
PARTS = [
    b"cposix\nsystem\n",
    b"ccollections\nOrderedDict\n",
    b"ctorch.storage\n_load_from_bytes\n",
    b"K\x01",
    b"h\x00",
]
PARTS += [
    b"\x8c\x05posix\x8c\x06system\x93",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"\x8c\x03ema",
    b"C\x02PK",
    b"q\x00",
]


@settings(max_examples=200)
@given(parts=st.lists(st.sampled_from(OPCODES + PARTS) | st.binary(max_size=4), max_size=40))
def test_random_programs_end_in_data_or_a_refusal(parts):
    from featlens_trainers.convert.meanings import edm_meanings

    inspection = Inspection(10_000)
    try:
        Machine(edm_meanings(inspection), inspection).read(io.BytesIO(b"".join([b"\x80\x02", *parts, b"."])))
    except FeatlensError as error:
        assert str(error).isprintable()
