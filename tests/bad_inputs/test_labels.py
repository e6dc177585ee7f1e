"""Labels that are no class: numbers without end, and names that a terminal would obey."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.bad_inputs.attacks import Attack, check_attack

DIGITS = "9" * 5000


def tar(here: Path, name: str, label: bytes) -> None:
    """A tar of one image whose label member has these bytes."""
    picture = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(picture, "png")
    with tarfile.open(here / "set.tar", "w") as archive:
        for member, data in (("0001.png", picture.getvalue()), (name, label)):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


LABELS = {
    "cls of 5,000 digits": ("0001.cls", DIGITS.encode()),
    "JSON number of 5,000 digits": ("0001.json", f'{{"label": {DIGITS}}}'.encode()),
    "JSON text of 5,000 digits": ("0001.json", json.dumps({"label": DIGITS}).encode()),
    "JSON float of 5,000 digits": ("0001.json", f'{{"label": {DIGITS}.5}}'.encode()),
    "JSON NaN": ("0001.json", b'{"label": NaN}'),
    "JSON Infinity": ("0001.json", b'{"label": Infinity}'),
    "JSON nested deep": ("0001.json", b"[" * 100_000),
    "JSON list": ("0001.json", b'{"label": [1]}'),
    "cls of escape codes": ("0001.cls", b"\x1b[2J\x07"),
    "cls that is no UTF-8": ("0001.cls", b"\xff\xfe"),
    "cls of another direction": ("0001.cls", "\u202egnp.exe".encode()),
}


@pytest.mark.parametrize("name", LABELS)
def test_a_label_that_is_none_is_no_traceback(name: str, tmp_path: Path) -> None:
    member, data = LABELS[name]
    arguments = ("plan", "quickstart", "--set", "source={kind: webdataset, path: set.tar}", "--set", "split.train=rest")
    check_attack(Attack(name, arguments, (0, 2, 3), make=lambda here: tar(here, member, data)), tmp_path)
