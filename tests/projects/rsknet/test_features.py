"""That features are Kaldi's: against its native library, a double-precision oracle written from the definition, and brute force."""

import math

import kaldi_native_fbank as kaldi
import numpy as np
import pytest
import torch

from projects.rsknet.features import Fbank, energy_vad, log_energy, subtract_mean
from shared.export import export_onnx
from shared.seeding import generator

SETTINGS = {
    "16kHz-80-hamming": {},
    "8kHz-24-shift12.5": {"sample_rate": 8000, "bins": 24, "frame_shift": 12.5, "high": -200.0},
    "16kHz-40-povey": {"bins": 40, "window": "povey", "low": 40.0, "high": 7600.0},
    "8kHz-30-hanning": {"sample_rate": 8000, "bins": 30, "window": "hanning", "preemphasis": 0.9},
}
by_setting = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())


def drawn(*shape, key="noise"):
    """Noise of speech's level with a slow swell, a tone and an offset."""
    time = torch.arange(shape[-1]) / 16000
    noise = torch.randn(*shape, generator=generator(0, "features", key))
    return 0.05 * noise * (1.2 + torch.sin(9 * time)) + 0.1 * torch.sin(2 * math.pi * 440 * time) + 0.02


def native(samples, setting, coefficients=None):
    options = kaldi.FbankOptions() if coefficients is None else kaldi.MfccOptions()
    frame, mel = options.frame_opts, options.mel_opts
    frame.samp_freq, frame.frame_shift_ms, frame.dither = setting.get("sample_rate", 16000), setting.get("frame_shift", 10.0), 0
    frame.window_type, frame.preemph_coeff, frame.snip_edges = setting.get("window", "hamming"), setting.get("preemphasis", 0.97), True
    mel.num_bins, mel.low_freq, mel.high_freq = setting.get("bins", 80), setting.get("low", 20.0), setting.get("high", 0.0)
    options.use_energy = False
    if coefficients is not None:
        options.num_ceps = coefficients
    extractor = kaldi.OnlineFbank(options) if coefficients is None else kaldi.OnlineMfcc(options)
    extractor.accept_waveform(frame.samp_freq, (samples.numpy() * 32768).tolist())
    extractor.input_finished()
    return torch.from_numpy(np.stack([extractor.get_frame(number) for number in range(extractor.num_frames_ready)]).T)


def oracle(samples, sample_rate=16000, bins=80, frame_shift=10.0, window="hamming", preemphasis=0.97, low=20.0, high=0.0):
    """Log-mel features (F, T) in double precision, frame by frame and filter by filter."""
    samples, length, shift = samples.double().numpy() * 32768, sample_rate // 40, round(sample_rate * frame_shift / 1000)
    shape = {"hamming": np.hamming(length), "hanning": np.hanning(length), "povey": np.hanning(length) ** 0.85}[window]
    size = 2 ** math.ceil(math.log2(length))
    top = high if high > 0 else sample_rate / 2 + high
    edges = [mel(low) + number * (mel(top) - mel(low)) / (bins + 1) for number in range(bins + 2)]
    columns = []
    for start in range(0, len(samples) - length + 1, shift):
        frame = samples[start : start + length] - samples[start : start + length].mean()
        frame = frame - preemphasis * np.concatenate([frame[:1], frame[:-1]])
        power = np.abs(np.fft.fft(frame * shape, size)) ** 2
        column = []
        for left, centre, right in zip(edges, edges[1:], edges[2:], strict=False):
            weights = [max(0, min((mel(k * sample_rate / size) - left) / (centre - left), (right - mel(k * sample_rate / size)) / (right - centre)))
                       for k in range(size // 2)]  # fmt: skip
            column.append(math.log(max(np.dot(weights, power[: size // 2]), np.finfo(np.float32).eps)))
        columns.append(column)
    return torch.tensor(np.array(columns).T)


def mel(frequency):
    return 1127 * math.log(1 + frequency / 700)


@by_setting
def test_log_mel_features_are_those_of_kaldi(setting):
    samples = drawn(12345)
    torch.testing.assert_close(Fbank(**setting)(samples), native(samples, setting), atol=2e-3, rtol=0)  # both in single precision, 1e-4 here


@by_setting
def test_log_mel_features_are_those_of_the_definition(setting):
    samples = drawn(2000)
    torch.testing.assert_close(Fbank(**setting)(samples).double(), oracle(samples, **setting), atol=1e-3, rtol=0)


@pytest.mark.parametrize("coefficients", [13, 30])
def test_mfcc_are_those_of_kaldi(coefficients):
    samples, setting = drawn(12345), {"bins": 30, "low": 20.0, "high": 7600.0, "window": "povey"}
    features = Fbank(coefficients=coefficients, **setting)(samples)
    torch.testing.assert_close(features, native(samples, setting, coefficients), atol=1e-2, rtol=0)  # liftering multiplies errors by up to 12


@pytest.mark.parametrize(("name", "coefficients"), [("8kHz-24-shift12.5", None), ("16kHz-40-povey", 20)], ids=["log-mel", "mfcc"])
def test_an_exported_graph_computes_the_same(name, coefficients):
    setting = SETTINGS[name]
    fbank = Fbank(coefficients=coefficients, **setting).eval()
    samples = drawn(2, 8000)
    graph = torch.export.export(fbank, (samples,), dynamic_shapes=({0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("samples", min=800)},))
    longer = drawn(3, 12345)
    torch.testing.assert_close(graph.module()(longer), fbank(longer), atol=1e-3 if coefficients is None else 1e-2, rtol=0)
    assert not any("fft" in str(node.target) or "unfold" in str(node.target) for node in graph.graph.nodes)


@pytest.mark.slow
def test_onnx_runtime_computes_the_same(tmp_path):
    assert export_onnx(Fbank(), tmp_path / "fbank.onnx", {"waveforms": drawn(8, 4000)}, ["features"], tolerance=1e-3) < 1e-3


def test_batches_and_long_recordings_are_the_sum_of_their_parts():
    fbank, samples = Fbank(sample_rate=8000, bins=24), drawn(3, 70000)
    whole = fbank(samples)
    assert whole.shape == (3, 24, fbank.frames(70000)) == (3, 24, 873)
    torch.testing.assert_close(torch.stack([fbank(row) for row in samples]), whole, atol=1e-4, rtol=0)
    torch.testing.assert_close(fbank(samples[:, 80 * 700 :]), whole[..., 700:], atol=1e-4, rtol=0)
    lengths = torch.tensor([0, 199, 200, 279, 280, 70000])
    assert fbank.frames(lengths).tolist() == [fbank.frames(int(length)) for length in lengths] == [0, 0, 1, 1, 2, 873]


def test_features_stay_in_single_precision():
    fbank, samples = Fbank(), drawn(2, 4000)
    expected = fbank(samples)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(fbank(samples), expected, atol=0, rtol=0)
        torch.testing.assert_close(subtract_mean(expected), expected - expected.mean(dim=2, keepdim=True), atol=0, rtol=0)
    torch.testing.assert_close(Fbank().bfloat16()(samples), expected, atol=0, rtol=0)
    assert not fbank.state_dict()


def test_silence_is_finite():
    features = Fbank()(torch.zeros(1, 1600))
    torch.testing.assert_close(features, torch.full((1, 80, 8), math.log(np.finfo(np.float32).eps)))
    assert torch.isfinite(Fbank(coefficients=13)(torch.full((1600,), 0.5))).all()


def test_the_mean_of_the_valid_frames_is_subtracted():
    features, lengths = drawn(3, 5, 40, key="mean"), torch.tensor([40, 7, 1])
    for window in (None, 1, 6, 7, 100):
        result = subtract_mean(features, lengths, window)
        for row, length in enumerate(lengths.tolist()):
            alone = features[row : row + 1, :, :length]
            torch.testing.assert_close(result[row : row + 1, :, :length], subtract_mean(alone, window=window), atol=1e-6, rtol=0)
            assert (result[row, :, length:] == 0).all()
    torch.testing.assert_close(subtract_mean(features), features - features.mean(dim=2, keepdim=True), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("frames", "window"), [(40, 11), (40, 10), (9, 10), (10, 10), (1, 300)])
def test_the_sliding_mean_is_that_of_kaldi(frames, window):
    features = drawn(2, 3, frames, key="sliding")
    expected = features.clone()
    for frame in range(frames):  # as `SlidingWindowCmn` with center = true
        start, end = frame - window // 2, frame - window // 2 + window
        if start < 0:
            start, end = 0, end - start
        if end > frames:
            start, end = max(start - (end - frames), 0), frames
        expected[:, :, frame] -= features[:, :, start:end].mean(dim=2)
    torch.testing.assert_close(subtract_mean(features, window=window), expected, atol=1e-6, rtol=0)


def test_log_energies_are_kaldis_raw_energies():
    samples = drawn(8000)
    options = kaldi.MfccOptions()
    options.use_energy, options.raw_energy, options.frame_opts.dither = True, True, 0
    extractor = kaldi.OnlineMfcc(options)
    extractor.accept_waveform(16000, (samples.numpy() * 32768).tolist())
    extractor.input_finished()
    expected = torch.tensor([extractor.get_frame(number)[0] for number in range(extractor.num_frames_ready)])
    torch.testing.assert_close(Fbank().log_energy(samples), expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(log_energy(samples.unfold(0, 400, 160)), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("options", [{}, {"context": 0, "proportion": 0.6}, {"context": 5, "proportion": 0.5, "mean_scale": 0.9, "threshold": 1.0}])
def test_speech_is_found_by_kaldis_rule(options):
    energies = 12 + 8 * torch.sin(torch.arange(60) / 8) + 2 * torch.randn(3, 60, generator=generator(0, "vad"))
    lengths = torch.tensor([60, 25, 1])
    chosen = {"threshold": 5.5, "mean_scale": 0.5, "context": 2, "proportion": 0.12} | options
    found = energy_vad(energies, lengths, **options)
    for row, length in zip(range(3), lengths.tolist(), strict=True):
        values = energies[row, :length].tolist()
        threshold = chosen["threshold"] + chosen["mean_scale"] * sum(values) / length
        expected = []
        for frame in range(length):
            near = values[max(0, frame - chosen["context"]) : frame + chosen["context"] + 1]
            expected.append(sum(value > threshold for value in near) >= len(near) * chosen["proportion"])
        assert found[row].tolist() == expected + [False] * (60 - length)
    assert found.any()
    assert not found[0].all()
    assert torch.equal(energy_vad(energies[:1], **options), found[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bins": 200}, "200 mel filters are too many for 256 frequencies at 16000 Hz"),
        ({"high": 9000.0}, "low < high <= 8000 Hz, got 80 from 20 to 9000 Hz"),
        ({"high": -9000.0}, "low < high"),
        ({"window": "kaiser"}, "window must be one of hamming, hanning, povey, got 'kaiser'"),
        ({"frame_shift": 0.0}, "every 0.0 ms hold too few samples"),
        ({"coefficients": 81}, "coefficients must be from 1 to the number of mel filters, 80, got 81"),
    ],
    ids=["bins", "high", "offset", "window", "shift", "coefficients"],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Fbank(**options)


def test_short_waveforms_are_refused_with_the_number_of_samples_needed():
    for samples in (0, 399):
        with pytest.raises(ValueError, match=rf"{samples} samples is shorter than one frame: at least 400 samples \(25 ms at 16000 Hz\)"):
            Fbank()(torch.zeros(2, samples))
    assert Fbank()(torch.zeros(2, 400)).shape == (2, 80, 1)
    with pytest.raises(ValueError, match="window must be a positive number of frames"):
        subtract_mean(torch.zeros(1, 2, 3), window=0)
