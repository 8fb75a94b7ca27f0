"""Synthesis with espeak-ng in a process of its own: reads requests as JSON from stdin, writes samples to stdout.

The library keeps state between texts, so that what it says depends on what it said before. A new process that always
gets the same list says the same. This file imports nothing of foveate, because a process that imports the package
would wait for torch.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import struct
import sys
from typing import Any

#: Events of the library that are used, and where its list ends.
_END, _PHONEME = 0, 7
_SYNCHRONOUS, _PHONEME_EVENTS, _DONT_EXIT = 2, 1, 0x8000
_SPEED, _PITCH = 1, 3
_UTF8, _CHARACTERS = 1, 1
_NO_LIBRARY, _NO_VOICE = 3, 4
NAMES = ("espeak-ng", "libespeak-ng.so.1", "libespeak-ng.dylib", "libespeak-ng.dll")


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    )


def library() -> tuple[Any, bytes | None]:
    """The library of espeak-ng, None where it is not installed, and the folder of its voices, None for its own.

    That of the package espeakng-loader comes first: one version says the same on every machine.
    """
    try:
        import espeakng_loader

        return ctypes.CDLL(espeakng_loader.get_library_path()), espeakng_loader.get_data_path().encode()
    except (ImportError, OSError, RuntimeError):
        pass
    for name in (ctypes.util.find_library(NAMES[0]), *NAMES[1:]):
        try:
            if name:
                return ctypes.CDLL(name), None
        except OSError:
            continue
    return None, None


def main() -> int:
    """Answer all requests: `[text, voice, speed, pitch]`, words a minute and 0 to 100.

    Writes the sampling rate once, and for each request the number of samples, the samples as int16, the number of bytes
    of a JSON list of `[first sample, phoneme]`, and that list.
    """
    lib, voices = library()
    if lib is None:
        return _NO_LIBRARY
    rate = lib.espeak_Initialize(_SYNCHRONOUS, 0, voices, _PHONEME_EVENTS | _DONT_EXIT)
    if rate <= 0:
        return _NO_LIBRARY
    samples, phonemes = bytearray(), []

    def receive(wave: Any, count: int, events: Any) -> int:
        if wave and count > 0:
            samples.extend(ctypes.string_at(wave, 2 * count))
        index = 0
        while events[index].type != _END:
            if events[index].type == _PHONEME:
                phonemes.append([events[index].sample, events[index].id.string.decode("utf-8", "replace")])
            index += 1
        return 0

    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(_Event))(receive)
    lib.espeak_SetSynthCallback(callback)
    output = sys.stdout.buffer
    output.write(struct.pack("<i", rate))
    for text, voice, speed, pitch in json.load(sys.stdin):
        samples.clear()
        phonemes.clear()
        if lib.espeak_SetVoiceByName(voice.encode()) != 0:
            sys.stderr.write(voice)
            return _NO_VOICE
        lib.espeak_SetParameter(_SPEED, speed, 0)
        lib.espeak_SetParameter(_PITCH, pitch, 0)
        data = text.encode()
        lib.espeak_Synth(data, len(data) + 1, 0, _CHARACTERS, 0, _UTF8, None, None)
        lib.espeak_Synchronize()
        listed = json.dumps(phonemes).encode()
        output.write(struct.pack("<i", len(samples) // 2) + samples + struct.pack("<i", len(listed)) + listed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
