"""Fuzzes the readers of app/: `python -m tests.fuzz [TARGET ...] --seconds 60`; what fails is written beside the corpus.

With atheris guided by coverage, where it is installed (make fuzz installs it); else by blind mutation of the seeds.
"""

import argparse
import hashlib
import logging
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

CORPUS = Path("runs/fuzz")
MEMORY_BYTES = 2**30
NUMBERS = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\0\0\0", b"\0\1\0\0", b"\xff\xff", b"\0\0", b"\1\0")


def mutate(data: bytes, seeds: list[bytes], chance: random.Random) -> bytes:
    """One to eight changes: bytes, numbers at their limits, cuts, copies, and parts of another seed."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        size = len(changed)
        at, length = chance.randrange(size + 1), min(chance.randint(1, 64), size)
        match chance.randrange(7):
            case 0 | 1 if size:
                changed[chance.randrange(size)] = chance.randrange(256)
            case 2:
                number = chance.choice(NUMBERS)
                changed[at : at + len(number)] = number
            case 3:
                del changed[at : at + length]
            case 4:
                changed[at:at] = changed[at : at + length] * chance.randint(1, 4)
            case 5:
                other = chance.choice(seeds)
                begin = chance.randrange(len(other) + 1)
                changed[at:at] = other[begin : begin + length]
            case 6 if size:
                changed[chance.randrange(size)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def mutate_blindly(target: str, seconds: float, seed: int) -> int:
    """Runs until `seconds` of processor time have passed; returns how many inputs that were. Raises what the target does."""
    from tests.fuzz.targets import TARGETS, seeds

    run, known, chance = TARGETS[target], seeds(target), random.Random(seed)
    begun, count = time.process_time(), 0
    while time.process_time() - begun < seconds:
        data = mutate(chance.choice(known), known, chance)
        try:
            run(data)
        except BaseException:
            save(target, data)
            raise
        count += 1
    return count


def save(target: str, data: bytes) -> None:
    CORPUS.mkdir(parents=True, exist_ok=True)
    path = CORPUS / f"crash-{target}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    print(f"{target}: the input that fails is in {path}", file=sys.stderr)


def mutate_by_coverage(target: str, seconds: float) -> None:
    """atheris; it ends the process itself."""
    import atheris

    with atheris.instrument_imports(include=["app", "PIL", "starlette", "python_multipart"]):
        from tests.fuzz.targets import TARGETS, seeds
    corpus, first = CORPUS / target, Path(tempfile.mkdtemp())
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds(target)):
        (first / str(number)).write_bytes(data)
    options = [f"-max_total_time={seconds:g}", f"-artifact_prefix={CORPUS}/crash-{target}-", "-timeout=20", "-max_len=65536"]
    limits = [f"-rss_limit_mb={MEMORY_BYTES >> 20}", "-print_final_stats=1", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, *limits, os.fspath(corpus), os.fspath(first)], TARGETS[target])
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", default=["image", "body", "tensors", "spec"])
    parser.add_argument("--seconds", type=float, default=60, help="for each target (default: 60)")
    parser.add_argument("--blind", action="store_true", help="by mutation alone, also where atheris is")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable()
    try:
        import atheris  # noqa: F401
    except ImportError:
        options.blind = True
    if options.blind:
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, resource.RLIM_INFINITY))
        for target in options.targets:
            print(f"{target}: {mutate_blindly(target, options.seconds, options.seed):,} inputs, none of them fails", flush=True)
        return 0
    if len(options.targets) == 1:
        mutate_by_coverage(options.targets[0], options.seconds)
    commands = [[sys.executable, "-m", "tests.fuzz", one, "--seconds", str(options.seconds)] for one in options.targets]
    return max(subprocess.run(command, check=False).returncode for command in commands)


if __name__ == "__main__":
    sys.exit(main())
