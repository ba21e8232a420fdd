"""The command line: the commands of `commands/` under one name, and what happens when something goes wrong.

Place in the flow: on top of everything; a command parses, calls and prints, and imports what it needs when it runs.
What the user can mend (a UserError, a file that cannot be read or written, a full disk) is one line on stderr and exit
code 2. A closed pipe (`| head`) ends the command without a word. Any other exception is a bug: it keeps its traceback
and exits with code 1.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from cyclopts import App, CycloptsError

from . import __version__
from .commands.convert import convert
from .commands.data import app as data
from .commands.encode import encode
from .commands.evaluate import evaluate
from .commands.examples import examples
from .commands.generate import generate
from .commands.merge import merge
from .commands.train import demo, train
from .errors import UserError, notices_as_lines

app = App(
    name="latentlm",
    help="LatentLM: one causal Transformer that reads and writes text, images and speech.",
    help_epilogue=examples(
        'latentlm generate tiny "red apple" --to image --out apple.png',
        "latentlm demo",
        "latentlm COMMAND --help",
    ),
    help_format="plaintext",
    version=__version__,
    suppress_keyboard_interrupt=False,
)
app.command(
    demo,
    sort_key=1,
    help_epilogue=examples("latentlm demo", "latentlm demo --out runs/look --quick"),
)
app.command(
    train,
    sort_key=2,
    help_epilogue=examples(
        "latentlm train demo --out runs/mine",
        "latentlm train demo --set training.steps=500 --out runs/short",
        "latentlm train my_recipe.yaml --processes 2",
        "latentlm train my_recipe.yaml --resume",
        "latentlm train finetune --set 'data.sources=[{manifest: mine.jsonl}]' --out runs/mine",
    ),
)
app.command(
    encode,
    sort_key=3,
    help_epilogue=examples(
        "latentlm encode photos --task text_to_image --tokenizers runs/my_image --out shards/photos",
        "latentlm encode train.parquet --column image=image --column text=text --task text_to_image "
        "--tokenizers tiny --out shards/train --processes 8",
        "latentlm encode 's3://bucket/set-*.tar' --task speech_to_text --tokenizers runs/my_speech --out shards/set",
        "latentlm train my_recipe.yaml --set 'data.sources=[{shards: shards/photos}]'",
    ),
)
app.command(
    generate,
    sort_key=3,
    help_epilogue=examples(
        'latentlm generate tiny "red apple" --to image --out apple.png',
        'latentlm generate tiny "seven" --to speech --out seven.wav',
        "latentlm generate tiny apple.png --to text",
        'latentlm generate tiny "blue circle" --to image --num 4 --out circle.png',
        'latentlm generate tiny "seven" --to speech --adapter runs/mine --out seven.wav',
        'latentlm generate runs/demo picture.png "how many shapes are there? " --to text',
        "latentlm generate MODEL talk.txt --to speech --voice 1=anna.wav --voice 2=ben.wav --out talk.wav",
    ),
)
app.command(
    evaluate,
    sort_key=4,
    help_epilogue=examples(
        "latentlm evaluate tiny --out tiny.json",
        "latentlm evaluate runs/demo --out demo.html --quick",
        "latentlm evaluate runs/demo --out guided.json --only digits --guidance 1.5",
        "latentlm evaluate runs/mine --out mine.html --manifest held_out.jsonl",
        "latentlm evaluate runs/my_image --out tokenizer.html",
    ),
)
app.command(
    merge,
    sort_key=5,
    help_epilogue=examples("latentlm merge tiny runs/mine --out merged"),
)
app.command(
    convert,
    sort_key=6,
    help_epilogue=examples(
        "latentlm convert Qwen/Qwen2.5-0.5B qwen --from hf-llm",
        "latentlm convert checkpoint-250000 imagenet --from unilm",
        "latentlm convert kl16.ckpt kl16 --from diffusers-vae --image-size 256 --calibrate mine.jsonl",
        "latentlm convert runs/mine/model mine-hf --from latentlm --to hf-llm",
    ),
)
app.command(data)


PIPE_CLOSED = 141
"""Exit code of a command whose reader has gone, as the shell gives it: 128 + SIGPIPE."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command of `arguments` (default: of this process); ends by SystemExit unless all went well."""
    try:
        with notices_as_lines():
            app(arguments, exit_on_error=False, print_error=False, result_action="return_none")
        sys.stdout.flush()
    except (CycloptsError, UserError) as error:
        _fail(str(error))
    except BrokenPipeError:
        _give_up_output()
        sys.exit(PIPE_CLOSED)
    except OSError as error:
        if error.errno is None:  # no answer of the system's: raised by a library, or by a mistake of ours
            raise
        _give_up_output()
        where = "" if error.filename is None else f"{error.filename}: "
        _fail(f"{where}{error.strerror or error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _give_up_output() -> None:
    """What stdout does not take goes nowhere: the interpreter would try once more at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):  # not a file of the system's
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str) -> None:
    print(f"latentlm: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
