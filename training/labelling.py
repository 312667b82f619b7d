"""A page that shows a folder of images for labelling, the least sure first, and makes a manifest that training reads."""

import re
from html import escape
from pathlib import Path
from string import Template
from urllib.parse import quote

import numpy as np

from app.image import decode
from app.samples import NAME, UNSURE
from app.spec import InputSpec
from training.errors import refusing
from training.files import write_whole
from training.folder import walk
from training.report import MAX_SIDE, thumbnail

TEMPLATE = Path(__file__).with_name("labelling.html")
MAX_IMAGES = 2000
SMALL = InputSpec(height=MAX_SIDE, width=MAX_SIDE, channels=3)


def write_page(root: Path) -> str:
    """Writes the page into the folder; returns what it shows. Raises: InputError, TrainingError."""
    named = [(path, NAME.fullmatch(path.name)) for path in walk(root) if path.parent != root]
    named.sort(key=lambda one: (one[1]["probability"] if one[1] else "2", one[0]))
    items = "".join(_item(path, root, name) for path, name in named[:MAX_IMAGES])
    labels = {name["label"] for _, name in named if name} | {path.parent.name for path, _ in named} - {UNSURE}
    options = "".join(f"<option>{escape(label)}</option>" for label in sorted(labels))
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(items=items, options=options)
    write_whole(root / "labelling.html", page.encode("utf-8", errors="replace"))
    return f"wrote {root / 'labelling.html'} with {len(named[:MAX_IMAGES]):,} of {len(named):,} images, the least sure first"


def _item(path: Path, root: Path, name: re.Match[str] | None) -> str:
    place, label = path.relative_to(root).as_posix(), "" if path.parent.name == UNSURE else path.parent.name
    with refusing(f"{path} cannot be shown"):
        source = thumbnail(np.asarray(decode(path.read_bytes(), SMALL)))
    called = f"{name['label']} {float(name['probability']):.1%}" if name else place
    return (
        f'<li><a href="{quote(place)}"><img src="{source}" alt="" loading="lazy"></a><p>{escape(called)}</p>'
        f'<input list="labels" aria-label="label" data-path="{escape(place)}" value="{escape(label)}"></li>'
    )
