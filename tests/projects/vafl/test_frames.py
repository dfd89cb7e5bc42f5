import random
import struct

import pytest
import torch

from projects.vafl.frames import HEAD_LIMIT, KINDS, VERSION, Frame, FrameError, decode, encode

DTYPES = [torch.float32, torch.float16, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool]
FIELDS = {
    "client": 3,
    "loss": 0.25,
    "name": "bank \u00e9",
    "resumed": True,
    "none": None,
    "rows": [1, [2, "x"], []],
    "most": 2**63 - 1,
    "least": -(2**63),
}


def head(kind="beat", fields="{}", tensors="[]", payload=b"", magic=b"VAFL", version=VERSION):
    """Write a message by hand, from the description of its layout."""
    text = f'{{"kind":"{kind}","fields":{fields},"tensors":{tensors}}}'.encode()
    text += b" " * (-(10 + len(text)) % 8)
    return magic + struct.pack("<HI", version, len(text)) + text + payload


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 0, 4), (2, 1, 3, 2)], ids=str)
def test_a_frame_comes_back_as_it_went(dtype, shape):
    value = torch.randn(shape, generator=torch.Generator().manual_seed(1)).mul(3).to(dtype)
    found = decode(encode(Frame("upload", FIELDS, {"embeddings": value, "rows": torch.arange(7)})))
    assert (found.kind, found.fields, list(found.tensors)) == ("upload", FIELDS, ["embeddings", "rows"])
    torch.testing.assert_close(found.tensors["embeddings"], value, rtol=0, atol=0)
    torch.testing.assert_close(found.tensors["rows"], torch.arange(7), rtol=0, atol=0)


def test_strided_and_differentiable_tensors_go_as_their_values():
    value = torch.randn(4, 6, requires_grad=True)
    found = decode(encode(Frame("upload", {}, {"h": value[:, ::2].T}))).tensors["h"]
    torch.testing.assert_close(found, value.detach()[:, ::2].T, rtol=0, atol=0)
    assert not found.requires_grad


def test_numbers_that_are_not_finite_go_in_tensors_only():
    value = torch.tensor([float("nan"), float("inf"), -0.0])
    torch.testing.assert_close(decode(encode(Frame("signal", {}, {"h": value}))).tensors["h"], value, rtol=0, atol=0, equal_nan=True)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(FrameError, match=r"loss.*send other numbers as tensors"):
            encode(Frame("signal", {"loss": bad}))


def test_the_layout_is_the_documented_one():
    message = bytes(encode(Frame("beat", {"n": 1}, {"h": torch.tensor([1.5, -2.0, 3.0])})))
    assert message == head(fields='{"n":1}', tensors='[["h","float32",[3]]]', payload=struct.pack("<3f", 1.5, -2.0, 3.0) + bytes(4))


def test_tensors_are_views_of_a_message_that_can_be_written_to_and_copies_of_another():
    message = encode(Frame("beat", {}, {"h": torch.zeros(2)}))
    shared, copied = decode(message).tensors["h"], decode(bytes(message)).tensors["h"]
    message[-8:] = struct.pack("<2f", 1, 2)
    assert (shared.tolist(), copied.tolist()) == ([1, 2], [0, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_goes(kind):
    assert decode(encode(Frame(kind))).kind == kind


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (Frame("gossip"), "unknown kind 'gossip'.*same release"),
        (Frame("beat", {"a": {"b": 1}}), "'a' is .* a dict"),
        (Frame("beat", {"a": (1, 2)}), "a tuple"),
        (Frame("beat", {"a": [[[[[1]]]]]}), "a list"),
        (Frame("beat", {"a": 2**63}), "64 bits"),
        (Frame("beat", {1: 2}), "names to values"),
        (Frame("beat", {"a": "x" * HEAD_LIMIT}), "long lists as tensors"),
        (Frame("beat", {}, {"h": torch.zeros(2, dtype=torch.complex64)}), "'h' is torch.complex64"),
        (Frame("beat", {}, {"h": torch.zeros([1] * 9)}), "9 dimensions"),
        (Frame("beat", {}, {"h": torch.eye(2).to_sparse()}), "'h'"),
    ],
    ids=["kind", "dict", "tuple", "deep", "wide", "name", "head", "dtype", "dimensions", "sparse"],
)
def test_what_a_message_cannot_hold_is_named(frame, said):
    with pytest.raises(FrameError, match=said):
        encode(frame)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (b"", "not a message"),
        (b"VAFL\x01", "not a message"),
        (head(magic=b"HTTP"), "begins with b'HTTP'"),
        (head(version=VERSION + 1), f"version {VERSION + 1}, this side speaks {VERSION}: install the same release"),
        (head()[:-8], "with a head of"),
        (head() + bytes(8), "whose head speaks of"),
        (head(kind="gossip"), "unknown kind"),
        (head(fields="[]"), "names to values"),
        (head(fields='{"a":NaN}'), "NaN is not a number"),
        (head(fields='{"a":-Infinity}'), "-Infinity is not a number"),
        (head(fields='{"a":1e999}'), "field 'a'"),
        (head(fields='{"a":' + "9" * 5000 + "}"), "cannot be read"),
        (head(fields='{"a":{"b":1}}'), "field 'a'"),
        (head(fields='{"a":1,"a":2}'), "stands twice"),
        (head(fields='{"a":' + "[" * 100_000 + "}"), "cannot be read"),
        (head(fields='{"a":' + "[" * 500 + "]" * 500 + "}"), "field 'a'"),
        (head(fields="{},x"), "cannot be read"),
        (head(fields='{},"more":1'), "kind, fields and tensors"),
        (head(kind="\xff").replace("\xff".encode(), b"\xff\xff"), "cannot be read"),
        (head(tensors="{}"), "not a list"),
        (head(tensors='["h"]'), "name, dtype, shape"),
        (head(tensors='[["h","object",[1]]]', payload=bytes(8)), "of dtype object"),
        (head(tensors='[["h",["float32"],[1]]]', payload=bytes(8)), "of dtype"),
        (head(tensors='[["h","float32",[-1]]]'), "the shape"),
        (head(tensors='[["h","float32",[true]]]', payload=bytes(8)), "the shape"),
        (head(tensors='[["h","float32",[1.0]]]', payload=bytes(8)), "the shape"),
        (head(tensors='[["h","float32",[0,1073741824,1073741824]]]'), "the shape"),
        (head(tensors='[["h","float64",[4]]]', payload=bytes(24)), "beyond the end"),
        (head(tensors='[["h","uint8",[3]]]', payload=b"abcdefgh"), "filled up with zeros"),
        (head(tensors='[["h","uint8",[3]]]', payload=b"abc"), "beyond the end"),
        (head(tensors='[["h","bool",[2]]]', payload=b"\1\2" + bytes(6)), "neither 0 nor 1"),
        (head(tensors='[["h","uint8",[8]],["h","uint8",[8]]]', payload=bytes(16)), "two tensors 'h'"),
        (b"VAFL" + struct.pack("<HI", VERSION, HEAD_LIMIT + 1) + bytes(HEAD_LIMIT + 1), "at most"),
    ],
    ids=range(33),
)
def test_a_message_that_is_not_one_says_why(message, said):
    with pytest.raises(FrameError, match=said):
        decode(message)


def test_a_message_beyond_the_limit_is_neither_written_nor_read():
    frame = Frame("upload", {}, {"h": torch.zeros(1000)})
    message = encode(frame)
    assert decode(message, limit=len(message)).tensors["h"].shape == (1000,)
    with pytest.raises(FrameError, match="smaller batches"):
        encode(frame, limit=len(message) - 1)
    with pytest.raises(FrameError, match="smaller batches"):
        decode(message, limit=len(message) - 1)


def test_damaged_messages_raise_nothing_but_frame_errors():
    rng = random.Random(7)
    frame = Frame("upload", FIELDS, {"h": torch.randn(3, 4), "mask": torch.tensor([True, False]), "rows": torch.arange(3)})
    whole = bytes(encode(frame))
    length = struct.unpack_from("<I", whole, 6)[0]
    refused = 0
    for _ in range(6000):
        message = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(10 + length) if rng.random() < 0.8 else rng.randrange(len(message))
            change = rng.random()
            if change < 0.5:
                message[min(place, len(message) - 1)] = rng.choice([rng.randrange(256), *b'{}[]",:0919-e.nt '])
            elif change < 0.7:
                del message[place : place + rng.randint(1, 9)]
            elif change < 0.9:
                message[place:place] = rng.choice([b"[", b"{", b'"', b"9" * 20, b",null", rng.randbytes(5)])
            else:
                message = message[: max(1, place)]
        if rng.random() < 0.5 and len(message) > 10:  # lengths that add up, so that what lies behind them is read
            struct.pack_into("<I", message, 6, max(0, min(length + len(message) - len(whole), 2**32 - 1)))
        try:
            found = decode(message)
        except FrameError:
            refused += 1
        else:
            assert decode(encode(found)).fields == found.fields
    assert 3000 < refused < 6000
