"""The accuracy of a running service, image by image over HTTP: it must be what `python -m training evaluate` says of the file.

    python -m benchmarks.http_accuracy URL FOLDER      FOLDER/<label>/*: one request per file, 8 at a time

Prints images, right answers, accuracy, and the log loss, so that more than the first class is compared.
"""

import argparse
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

CONCURRENCY = 8


def main() -> None:
    """Sends every image once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    files = sorted(path for path in options.folder.glob("*/*") if path.is_file())
    with httpx.Client(base_url=options.url, timeout=30) as client, ThreadPoolExecutor(CONCURRENCY) as pool:
        answers = list(pool.map(lambda path: _ask(client, path), files))
    right = sum(is_right for is_right, _ in answers)
    loss = sum(loss for _, loss in answers) / len(answers)
    print(f"{len(answers)} images, {right} right, accuracy {right / len(answers):.4%}, log loss {loss:.4f}")


def _ask(client: httpx.Client, path: Path) -> tuple[bool, float]:
    """Whether the first class is right, and minus the logarithm of the true class's probability."""
    response = client.post("/predict", params={"top_k": 1000}, content=path.read_bytes())
    predictions = response.raise_for_status().json()["predictions"]
    true = next(one["probability"] for one in predictions if one["label"] == path.parent.name)
    return predictions[0]["label"] == path.parent.name, -math.log(max(true, 1e-12))


if __name__ == "__main__":
    main()
