"""The command line: registers the commands of `commands/`, runs one, and turns errors into exit codes.

Place in the flow: on top of everything. A command parses, calls and prints; it imports heavy libraries when it runs.

    0    success
    1    a bug: the exception keeps its traceback
    2    an error that the user can fix, one line on stderr: a UserError, a wrong option, a file that cannot be opened
    130  Ctrl-C
    141  the reader of stdout has closed the pipe (`| head`); no message
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from cyclopts import App, CycloptsError

from . import __version__
from .commands.arguments import explain, prepared
from .commands.convert import convert
from .commands.data import app as data
from .commands.encode import encode
from .commands.evaluate import evaluate
from .commands.examples import examples
from .commands.generate import generate
from .commands.merge import merge
from .commands.push import push
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
    help_format="markdown",
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
        "latentlm train finetune --set 'data.sources=[{manifest: mine.jsonl}]'",
    ),
)
app.command(
    encode,
    sort_key=3,
    help_epilogue=examples(
        "latentlm encode photos --task text_to_image --tokenizers tiny --out shards",
        "latentlm encode mine.jsonl --tokenizers runs/my_image --out shards/mine",
        "latentlm encode a.parquet --column image=photo --tokenizers tiny --out a",
        "latentlm encode 's3://bucket/set-*.tar' --tokenizers tiny --out shards",
        "latentlm train my_recipe.yaml --set 'data.sources=[{shards: shards}]'",
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
        'latentlm generate tiny "seven" --to speech --adapter runs/a --out 7.wav',
        "echo 'red apple' | latentlm generate tiny - --to image --out apple.png",
        'latentlm generate tiny a.png "how many shapes are there? " --to text',
        "latentlm generate tiny hello.txt --to speech --voice a.wav --out hello.wav",
    ),
)
app.command(
    evaluate,
    sort_key=4,
    help_epilogue=examples(
        "latentlm evaluate tiny --out tiny.json",
        "latentlm evaluate runs/demo --out demo.html --quick",
        "latentlm evaluate runs/demo --out a.json --only digits --guidance 1.5",
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
        "latentlm convert kl16.ckpt kl16 --from diffusers-vae --image-size 256",
        "latentlm convert runs/mine/model mine-hf --from latentlm --to hf-llm",
    ),
)
app.command(
    push,
    sort_key=7,
    help_epilogue=examples(
        "latentlm push runs/mine OWNER/mine --private",
        "latentlm push merged OWNER/mine --evaluation mine.json",
    ),
)
app.command(data)


PIPE_CLOSED = 141
"""Exit code if the reader of stdout has closed the pipe: 128 + SIGPIPE, as in shells."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command in `arguments` (default: those of this process); raises SystemExit if it fails."""
    words = prepared(sys.argv[1:] if arguments is None else arguments)
    try:
        with notices_as_lines():
            app(words, exit_on_error=False, print_error=False, result_action="return_none")
        sys.stdout.flush()
    except CycloptsError as error:
        _fail(explain(error, words))
    except UserError as error:
        _fail(str(error))
    except BrokenPipeError:
        _give_up_output()
        sys.exit(PIPE_CLOSED)
    except OSError as error:
        if error.errno is None:  # not from the operating system: a bug
            raise
        _give_up_output()
        where = "" if error.filename is None else f"{error.filename}: "
        _fail(f"{where}{error.strerror or error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _give_up_output() -> None:
    """Discard what stdout still holds: the interpreter would try to write it again when it exits."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):  # stdout is not a file of the operating system
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str) -> None:
    print(f"latentlm: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
