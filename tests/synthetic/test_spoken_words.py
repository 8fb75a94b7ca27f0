"""Spoken words: deterministic, at the asked level of noise, with labels where the sound is, and honest mouths."""

from pathlib import Path

import numpy as np
import pytest

from foveate.core.errors import FoveateError
from foveate.synthetic import espeak, espeak_worker, spoken_words
from foveate.synthetic.espeak import SAMPLING_RATE, Request, resample, speak
from foveate.synthetic.lips import VISEMES, shapes, viseme
from foveate.synthetic.spoken_words import PHONEMES, VOICES, utterance


def test_the_same_arguments_give_the_same_utterance():
    first = utterance(3, snr=0.0, noise="white")
    spoken_words._bank.cache_clear()
    second = utterance(3, snr=0.0, noise="white")
    assert first.words == second.words and first.voice == second.voice
    for name in ("sound", "frames", "phonemes", "visemes"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    assert first.sound.shape == (2 * SAMPLING_RATE,) and first.sound.dtype == np.float32
    assert first.frames.shape == (50, 32, 32) and first.frames.dtype == np.uint8
    assert first.phonemes.shape == (100,) and first.visemes.shape == (50,)
    # Noise changes the sound alone.
    clean = utterance(3)
    assert clean.words == first.words and np.array_equal(clean.frames, first.frames)
    assert np.array_equal(clean.phonemes, first.phonemes)


@pytest.mark.parametrize("noise", spoken_words.NOISES)
def test_the_level_of_noise_is_the_asked_one(noise):
    clean, noisy = utterance(5, "held-out").sound, utterance(5, "held-out", snr=-5.0, noise=noise).sound
    speech = clean * (noisy @ clean) / (clean @ clean)
    # Babble correlates a little with the speech, which a projection counts as speech.
    assert 10 * np.log10((speech @ speech) / np.square(noisy - speech).sum()) == pytest.approx(-5, abs=1)


def test_labels_are_where_the_sound_is():
    for number in range(4):
        one = utterance(number, "held-out")
        power = np.square(one.sound.reshape(100, -1)).mean(axis=1)
        assert power[one.phonemes > 0].mean() > 20 * power[one.phonemes == 0].mean()
        assert one.words and set(one.words) <= set(spoken_words.WORDS)


def test_every_phoneme_has_a_label_and_a_mouth():
    for voice in ("en-us+m1", "en+f1"):
        for renditions in spoken_words._bank(voice).values():
            for speech in renditions:
                for _, name in speech.phonemes:
                    assert viseme(name) in VISEMES
                    assert 0 <= spoken_words._phoneme(name) < len(PHONEMES)


def test_voices_of_the_splits_differ():
    assert not set(VOICES["train"]) & set(VOICES["held-out"])


def test_some_words_look_the_same_and_some_do_not():
    spoken = speak([Request(word, "en-us+m1") for word in ("pat", "bat", "mat", "fan")])
    kinds = [[viseme(name) for _, name in speech.phonemes if not name.startswith("_")] for speech in spoken]
    assert kinds[0] == kinds[1] == kinds[2] == ["bilabial", "open", "alveolar"]
    assert kinds[3] == ["labiodental", "open", "alveolar"]
    p, b, f = (shapes([(0.0, first), (0.1, "a"), (0.3, "t")], 10) for first in ("p", "b", "f"))
    assert np.array_equal(p, b) and not np.array_equal(p, f)


def test_resampling_keeps_a_tone():
    time = np.arange(22_050) / 22_050
    found = resample(np.sin(2 * np.pi * 440 * time), 22_050)
    expected = np.sin(2 * np.pi * 440 * np.arange(SAMPLING_RATE) / SAMPLING_RATE)
    assert len(found) == SAMPLING_RATE
    assert np.abs(found - expected).max() < 1e-5


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = Path(espeak_worker.__file__).read_text(encoding="utf-8")
    names = text.index("NAMES = "), text.index("\n", text.index("NAMES = "))
    text = text[: names[0]] + 'NAMES = ("no-such-library",)' + text[names[1] :]
    other = tmp_path / "worker.py"
    other.write_text(text.replace("import espeakng_loader", "import no_such_package"), encoding="utf-8")
    monkeypatch.setattr(espeak.espeak_worker, "__file__", str(other))
    with pytest.raises(FoveateError, match=r"foveate\[speech\]"):
        speak([Request("one", "en-us")])


def test_invalid_arguments():
    with pytest.raises(FoveateError, match="no voice 'xx'"):
        speak([Request("one", "xx")])
    with pytest.raises(FoveateError, match="train, held-out"):
        utterance(0, "test")
    with pytest.raises(FoveateError, match="babble, white"):
        utterance(0, noise="pink")
    with pytest.raises(FoveateError, match="more than 0.5 s"):
        utterance(0, seconds=0.5)
    with pytest.raises(FoveateError, match="needs a number from 0"):
        utterance(-1)
    with pytest.raises(FoveateError, match="must be English"):
        viseme("ø")
