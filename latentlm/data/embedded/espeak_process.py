"""The speaking process: eSpeak NG (GPL-3, from the espeakng-loader wheel) behind a pipe, in a process of its own.

Place in the flow: started by `speech.speak` as a script; nothing of the package imports this file, and this file
imports nothing of the package, so eSpeak's library is never loaded into a program that uses latentlm.

stdin:  one JSON object per line, {"text": str, "voice": "en-us+f1", "pitch": 0..99, "speed": words per minute}
stdout: one answer per request, in order: uint32 sample rate, uint32 number of bytes (both little-endian), then that
        many bytes of mono 16-bit little-endian samples. Rate 0: the bytes are an error message in UTF-8.

eSpeak carries its random state and filter memories from one utterance to the next. So that an utterance depends on its
request alone, the library is loaded anew and the C library's random numbers are seeded for each (about 6 ms); where the
platform cannot unload a library (Windows), utterances differ inaudibly from run to run.
"""

from __future__ import annotations

import ctypes
import json
import struct
import sys

import espeakng_loader

OUTPUT_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS of speak_lib.h
RATE, PITCH = 1, 3  # espeak_PARAMETER
CHARS_UTF8 = 1
Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def load_library() -> ctypes.CDLL:
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    library.espeak_Initialize.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
    library.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
    library.espeak_Synth.argtypes = [
        ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int,
        ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p,
    ]  # fmt: skip
    return library


def unload_library(library: ctypes.CDLL) -> None:
    library.espeak_Terminate()
    if sys.platform != "win32":
        import _ctypes

        _ctypes.dlclose(library._handle)


def synthesise(text: str, voice: str, pitch: int, speed: int) -> tuple[int, bytes]:
    """Sample rate and 16-bit samples of one utterance. ValueError for what eSpeak refuses."""
    chunks: list[bytes] = []

    @Callback
    def collect(samples, num_samples, _events):
        if num_samples > 0:
            chunks.append(ctypes.string_at(samples, 2 * num_samples))
        return 0

    library = load_library()
    try:
        rate = library.espeak_Initialize(OUTPUT_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
        if rate <= 0:
            raise ValueError(f"eSpeak NG did not start (code {rate}) with data {espeakng_loader.get_data_path()}")
        library.espeak_SetSynthCallback(collect)
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"eSpeak NG has no voice {voice!r}")
        library.espeak_SetParameter(RATE, speed, 0)
        library.espeak_SetParameter(PITCH, pitch, 0)
        if sys.platform != "win32":
            ctypes.CDLL(None).srand(1)
        encoded = text.encode()
        if library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, CHARS_UTF8, None, None) != 0:
            raise ValueError(f"eSpeak NG could not say {text!r}")
        library.espeak_Synchronize()
    finally:
        unload_library(library)
    return rate, b"".join(chunks)


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        try:
            rate, samples = synthesise(request["text"], request["voice"], request["pitch"], request["speed"])
        except ValueError as error:
            rate, samples = 0, str(error).encode()
        sys.stdout.buffer.write(struct.pack("<II", rate, len(samples)) + samples)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
