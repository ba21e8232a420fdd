"""Data that travels with the package, so that everything works offline.

Each set is a module with its splits in its definition: `load(split)` returns a list of light records, the same on
every machine and at every call, and the same media *objects* at every call in one process.

  digits   1,797 scans of handwritten digits                                       digits.npz   made by make_digits
  emoji    an atlas of colour emoji with their names                               emoji.png    made by make_emoji
  shapes   a generated world of coloured shapes, with exact questions and a reader
  speech   words and phrases spoken on the fly by eSpeak NG, in a process of its own
  prose    the Constitution and the Declaration of Independence of the United States
"""
