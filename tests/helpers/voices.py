"""Writers of miniatures of speaker corpora, as their archives unpack: right names, lists and labels, a few samples a file."""

from __future__ import annotations

import numpy as np
import soundfile

RATE = 16_000


def write_sound(path, samples=160, rate=RATE):
    """Write quiet noise that depends on the file's name alone, WAV or FLAC by its ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(list(path.name.encode())).normal(0, 0.05, samples)
    soundfile.write(path, noise, rate, subtype="PCM_16")
    return path


def write_speakers(home, speakers, sessions=("vidA", "vidB"), files=2, ending=".wav", samples=160):
    """Write `home/<speaker>/<session>/00001.wav` and so on; returns their names below `home`."""
    names = [f"{speaker}/{session}/{file + 1:05d}{ending}" for speaker in speakers for session in sessions for file in range(files)]
    for name in names:
        write_sound(home / name, samples)
    return names


def pair_lines(names, form="{label} {a} {b}", labels=("0", "1")):
    """Write all pairs of names as lines of a trial list; speakers are the first part of names."""
    pairs = [(a, b) for place, a in enumerate(names) for b in names[place + 1 :]]
    return [form.format(label=labels[a.split("/")[0] == b.split("/")[0]], a=a, b=b) for a, b in pairs]


def write_voxceleb(root, samples=160):
    """Write VoxCeleb1 dev and test and VoxCeleb2 dev with the cleaned lists O (test alone) and E (dev and test); returns the names by part."""
    names = {
        "vox1 dev": write_speakers(root / "voxceleb1/dev/wav", ["id10001", "id10002"], samples=samples),
        "vox1 test": write_speakers(root / "voxceleb1/test/wav", ["id10270", "id10271"], samples=samples),
        "vox2 dev": write_speakers(root / "voxceleb2/dev/wav", ["id00012", "id00015", "id00016"], samples=samples),
    }
    for file, parts in (("veri_test2.txt", ["vox1 test"]), ("list_test_all2.txt", ["vox1 dev", "vox1 test"])):
        (root / file).write_text("\n".join(pair_lines([name for part in parts for name in names[part]])) + "\n")
    return names


def write_sitw(root, splits=("dev", "eval"), models=3, samples=160):
    """Write Speakers in the Wild: core-core, and assist-core whose model 0 has two parts of a file and one of another."""
    for split in splits:
        folder = root / split
        (folder / "lists").mkdir(parents=True)
        (folder / "keys").mkdir()
        enrol = [f"audio/enrol{index}.flac" for index in range(models)]
        tests = [f"audio/test{index}.flac" for index in range(models)]
        for file in enrol + tests:
            write_sound(folder / file, samples)
        (folder / "lists/enroll-core.lst").write_text("".join(f"{12000 + index} {file}\n" for index, file in enumerate(enrol)))
        parts = [(0, 0, "0.100", "1.25"), (0, 0, "2.000", "5.600"), (0, 1, "0", "1.5"), (1, 1, "3.0", "4.0"), (2, 2, "0.0", "9.99")]
        (folder / "lists/enroll-assist.lst").write_text("".join(f"{12000 + model} {enrol[file]} {a} {b}\n" for model, file, a, b in parts))
        (folder / "lists/test-core.lst").write_text("".join(f"{file}\n" for file in tests))
        key = [f"{12000 + a} {file} {'tgt' if a == b else 'imp'}\n" for a in range(models) for b, file in enumerate(tests)]
        for condition in ("core-core", "assist-core"):
            (folder / f"keys/{condition}.lst").write_text("".join(key))


def write_kaldi(folder, speakers, files=2, sounds="sounds"):
    """Write a data folder with `wav.scp`, `utt2spk` and `spk2utt`, paths relative to the folder above; returns names of utterances by speaker."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {speaker: [f"{speaker}-vid{file}-{file:05d}" for file in range(files)] for speaker in speakers}
    for name in (name for each in names.values() for name in each):
        write_sound(folder.parent / sounds / f"{name}.wav")
    (folder / "wav.scp").write_text("".join(f"{name} {sounds}/{name}.wav\n" for each in names.values() for name in each))
    (folder / "utt2spk").write_text("".join(f"{name} {speaker}\n" for speaker, each in names.items() for name in each))
    (folder / "spk2utt").write_text("".join(f"{speaker} {' '.join(each)}\n" for speaker, each in names.items()))
    return names


def write_musan(root, samples=160, files=2):
    """Write `musan/{noise,music,speech}/<source>/*.wav` with the licences that lie beside them."""
    for kind, source in (("noise", "free-sound"), ("music", "fma"), ("speech", "librivox")):
        for file in range(files):
            write_sound(root / "musan" / kind / source / f"{kind}-{source}-{file:04d}.wav", samples)
        (root / "musan" / kind / source / "LICENSE").write_text("CC BY\n")


def write_rirs(root, samples=160, files=2):
    """Write small and medium simulated rooms; the small one's `rir_list` leaves its last file out."""
    for room, short in (("smallroom", "small"), ("mediumroom", "medium")):
        names = [f"RIRS_NOISES/simulated_rirs/{room}/Room001/Room001-{file + 1:05d}.wav" for file in range(files)]
        for name in names:
            write_sound(root / name, samples)
        if room == "smallroom":
            lines = [f"--rir-id {short}-{file} --room-id {short}-Room001 {name}\n" for file, name in enumerate(names[:-1])]
            (root / f"RIRS_NOISES/simulated_rirs/{room}/rir_list").write_text("".join(lines))
