"""Time of the import and of a first picture in a fresh process, and the memory of the demo."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from figures import Figure, seconds_of

IMPORT = "import time; t = time.perf_counter(); import latentlm; print(time.perf_counter() - t)"
FIRST_USE = "import time; t = time.perf_counter(); from latentlm import load; print(time.perf_counter() - t)"
LATENTLM = [sys.executable, "-c", "import sys; from latentlm.cli import main; sys.exit(main())"]
"""The installed script `latentlm`, run by this interpreter."""
SAMPLE_SECONDS = 0.2
"""Time between two measurements of a process tree."""


def import_figures(repeats: int) -> list[Figure]:
    """Seconds of `import latentlm` in a fresh interpreter, without and with `load`, which imports torch."""
    bare = [printed_seconds(IMPORT) for _ in range(repeats)]
    whole = [printed_seconds(FIRST_USE) for _ in range(repeats)]
    note = f"median of {repeats} fresh processes"
    return [
        Figure("import.seconds", "import latentlm", median(bare), "s", "< 1", {"runs": bare, "protocol": note}),
        Figure(
            "import.load_seconds", "from latentlm import load (with torch)", median(whole), "s", "", {"runs": whole}
        ),
    ]


def printed_seconds(code: str, environment: dict[str, str] | None = None) -> float:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout)


def cold_generate_figure(model: str, repeats: int) -> Figure:
    """Seconds of `latentlm generate MODEL "red apple" --to image`, from the start of the process to the file."""
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for number in range(repeats):
            out = Path(folder) / f"{number}.png"
            arguments = [*LATENTLM, "generate", model, "red apple", "--to", "image", "--out", str(out)]
            runs.append(seconds_of(lambda arguments=arguments: run(arguments)))
            assert out.is_file(), f"{out} was not written"
    detail = {"runs": runs, "protocol": f"median of {repeats} fresh processes"}
    what = f'latentlm generate {model} "red apple" --to image, cold'
    return Figure("generate.cold_seconds", what, median(runs), "s", "< 5", detail)


def run(arguments: list[str], environment: dict[str, str] | None = None) -> None:
    """Run a command. Raises RuntimeError with its last line of output if it fails."""
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise RuntimeError(f"{arguments[1:]}: exit code {done.returncode}: {' '.join(last)}")


def demo_memory_figure(arguments: list[str]) -> Figure:
    """Peak over time of the resident memory summed over the demo's process tree (shared pages count repeatedly)."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        peak, processes = peak_memory([*LATENTLM, "demo", "--out", str(Path(folder) / "demo"), *arguments])
        seconds = time.perf_counter() - started
    detail = {
        "seconds": seconds,
        "most_processes": processes,
        "arguments": arguments,
        "protocol": f"sum of VmRSS over the process tree every {SAMPLE_SECONDS} s, maximum",
    }
    return Figure("demo.peak_gib", "latentlm demo, peak memory of the process tree", peak / 2**30, "GiB", "< 4", detail)


def peak_memory(arguments: list[str]) -> tuple[int, int]:
    """Bytes and number of processes at the peak, while `arguments` run. Raises RuntimeError where the command fails."""
    process = subprocess.Popen(arguments)
    peak = most = 0
    while process.poll() is None:
        sizes = [resident_bytes(number) for number in tree(process.pid)]
        peak, most = max(peak, sum(sizes)), max(most, len(sizes))
        time.sleep(SAMPLE_SECONDS)
    if process.returncode:
        raise RuntimeError(f"{arguments[1:]}: exit code {process.returncode}")
    return peak, most


def tree(root: int) -> list[int]:
    """`root` and all its descendants, from /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            children.setdefault(_parent(entry), []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        number = waiting.pop()
        found.append(number)
        waiting += children.get(number, [])
    return found


def _parent(entry: Path) -> int:
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):  # ended meanwhile
        return -1


def resident_bytes(number: int) -> int:
    try:
        lines = (Path("/proc") / str(number) / "status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):  # ended meanwhile
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))
