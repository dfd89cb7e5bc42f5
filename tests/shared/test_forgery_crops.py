"""Squares about faces, detectors, and frames of video files."""

import struct
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from skimage.data import astronaut

from shared.data.files import BadFileError
from shared.forgery.crops import Face, crop_face, face_detector, square
from shared.forgery.videos import is_video, read_video


def test_squares_stay_in_the_frame():
    assert square((40, 40, 60, 50), 1.3, 100, 100) == (37, 32, 63, 58)
    assert square((0, 0, 20, 20), 1.3, 100, 100) == (0, 0, 26, 26), "moved inside"
    assert square((90, 10, 100, 30), 2.0, 50, 100) == (60, 0, 100, 40)
    assert square((0, 0, 90, 90), 1.3, 80, 120) == (5, 0, 85, 80), "no larger than the frame"
    random = np.random.default_rng(0)
    for _ in range(200):
        left, top, wide, high = random.uniform(-10, 100, 4)
        box = square((left, top, left + abs(wide), top + abs(high)), 1.3, 64, 96)
        assert 0 <= box[0] < box[2] <= 96
        assert 0 <= box[1] < box[3] <= 64
        assert box[2] - box[0] == box[3] - box[1]


def test_the_largest_face_is_cut_out():
    image = torch.zeros(3, 100, 160, dtype=torch.uint8)
    image[0, 20:60, 100:140] = 200
    faces = [Face((10, 10, 20, 20), 0.9), Face((100, 20, 140, 60), 0.5)]
    crop = crop_face(image, lambda _: faces, size=52)
    assert crop.box == (94, 14, 146, 66)
    assert crop.state == "face"
    assert torch.equal(crop.image, image[:, 14:66, 94:146])
    assert crop_face(image, lambda _: faces[:1]).state == "small face"
    nothing = crop_face(image, face_detector("none"), size=50)
    assert nothing.state == "no face"
    assert nothing.box == (30, 0, 130, 100)
    with pytest.raises(ValueError, match="margin must be at least 1"):
        crop_face(image, lambda _: faces, margin=0.5)


def test_a_face_in_a_photograph_is_found():
    image = torch.from_numpy(astronaut()).permute(2, 0, 1)
    crop = crop_face(image, face_detector(), size=64)
    left, top, right, bottom = crop.box
    assert crop.state == "face"
    assert left < 195 < 255 < right, "both eyes"
    assert top < 100 < 150 < bottom, "eyes and mouth"
    assert right - left < 220


def test_detectors_that_are_not_there(monkeypatch):
    with pytest.raises(ValueError, match="choose cascade"):
        face_detector("more")
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match="needs OpenCV"):
        face_detector("yunet")


def write_video(path, count=20, size=(64, 48), codec="mpeg4", milliseconds=None):
    """Write frames whose left half is bright and whose right half has ten times the frame's number, at 10 a second or at given times."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        if milliseconds:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(count):
            levels = np.full((*size[::-1], 3), 10 * number, dtype=np.uint8)
            levels[:, : size[0] // 2] = 250
            frame = av.VideoFrame.from_ndarray(levels, format="rgb24")
            if milliseconds:
                frame.pts, frame.time_base = milliseconds[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_frames_of_a_video_are_evenly_spaced(tmp_path):
    path = write_video(tmp_path / "clip.mp4")
    video = read_video(path, 4)
    assert video.numbers.tolist() == [0, 5, 10, 15]
    torch.testing.assert_close(video.times, torch.tensor([0.0, 0.5, 1.0, 1.5]))
    assert video.images.shape == (4, 3, 48, 64)
    assert (video.images[:, :, 24, 50].float().mean(1) - torch.tensor([0.0, 50, 100, 150])).abs().max() < 8
    assert (video.images[:, :, 24, 10].float() - 250).abs().max() < 12
    assert len(read_video(path, 100).images) == 20
    assert is_video("A.MP4")
    assert not is_video("a.png")


def test_videos_that_cannot_be_read(tmp_path):
    pytest.importorskip("av")
    with pytest.raises(FileNotFoundError, match="no video"):
        read_video(tmp_path / "none.mp4")
    (tmp_path / "bad.mp4").write_bytes(b"no video" * 50)
    with pytest.raises(BadFileError, match=r"bad\.mp4"):
        read_video(tmp_path / "bad.mp4")
    with pytest.raises(BadFileError, match="limit of 100"):
        read_video(write_video(tmp_path / "large.mp4", 3), max_pixels=100)
    whole = (tmp_path / "large.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadFileError, match=r"cut\.mp4"):
        read_video(tmp_path / "cut.mp4")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nhttp://localhost:1/a.ts\n")
    with pytest.raises(BadFileError, match=r"list\.m3u8"):
        read_video(tmp_path / "list.m3u8")


def test_videos_as_people_have_them(tmp_path):
    """One frame, an upper-case ending beside characters of other scripts, a rate that varies, and a size that changes on the way."""
    assert read_video(write_video(tmp_path / "one.mp4", 1)).images.shape == (1, 3, 48, 64)
    shouted = write_video(tmp_path / "clïp.mp4", 3).rename(tmp_path / "clïp 東.MP4")
    assert is_video(shouted)
    assert len(read_video(shouted).images) == 3
    times = [0, 100, 150, 1000, 5000, 5001]
    varying = read_video(write_video(tmp_path / "varying.mkv", 6, milliseconds=times), 3)
    assert varying.numbers.tolist() == [0, 2, 4], "evenly spaced by number"
    torch.testing.assert_close(varying.times, torch.tensor([0.0, 0.15, 5.0]))
    parts = [write_video(tmp_path / f"{size[0]}.mpg", 10, size, "mpeg2video").read_bytes() for size in ((64, 48), (96, 80))]
    (tmp_path / "both.mpg").write_bytes(b"".join(parts))
    both = read_video(tmp_path / "both.mpg", 4)
    assert both.images.shape == (4, 3, 48, 64)
    levels = both.images[:, :, 24, 60].float().mean(1)
    assert (levels - torch.tensor([0.0, 50, 0, 50])).abs().max() < 18, "a frame may be lost where the parts meet"


@pytest.mark.parametrize(("matrix", "bright"), [((0, 1, -1, 0), "top"), ((-1, 0, 0, -1), "right"), ((0, -1, 1, 0), "bottom")])
def test_videos_of_turned_phones_are_seen_upright(tmp_path, matrix, bright):
    """The header's matrix turns the picture by 90, 180 and 270 degrees clockwise as seen, which the bright left half shows."""
    content = bytearray(write_video(tmp_path / "clip.mp4", 2).read_bytes())
    first = content.index(b"tkhd") + 44
    assert content[first : first + 36] == struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    a, b, c, d = (value << 16 for value in matrix)
    content[first : first + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(content)
    image = read_video(tmp_path / "turned.mp4").images[0].float().mean(0)
    assert image.shape == ((48, 64) if bright == "right" else (64, 48))
    halves = {"top": image[:24], "bottom": image[-24:], "right": image[:, -24:], "left": image[:, :24]}
    assert max(halves, key=lambda name: float(halves[name].mean())) == bright


def test_damaged_parts_of_a_video_are_left_out(tmp_path, caplog):
    av = pytest.importorskip("av")
    path = write_video(tmp_path / "clip.mkv", 20)
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = path.read_bytes()
    for name, damaged in (("some", packets[5:8]), ("all", packets)):
        broken = bytearray(content)
        for start, size in damaged:
            broken[start + 4 : start + size] = bytes(size - 4)
        (tmp_path / f"{name}.mkv").write_bytes(broken)
    video = read_video(tmp_path / "some.mkv")
    assert 15 <= len(video.images) <= 17
    assert "some.mkv: 3 damaged parts of the video are left out" in caplog.text
    with pytest.raises(BadFileError, match=r"all\.mkv: not one of its frames can be decoded"):
        read_video(tmp_path / "all.mkv")


def test_videos_without_the_extra(tmp_path, monkeypatch):
    (tmp_path / "clip.mp4").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"videos need PyAV.*folder of frames"):
        read_video(tmp_path / "clip.mp4")
