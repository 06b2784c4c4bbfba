"""What several tests of demem.py share."""

import pytest

from tests.eval.scan.corpora import write_folder
from tests.unlearning.scans import FEW, scan


@pytest.fixture(scope="session")
def few(tmp_path_factory):
    """A scan of a few records in five formats: (its folder, the corpus)."""
    out, folder = tmp_path_factory.mktemp("scan") / "out", tmp_path_factory.mktemp("corpus")
    write_folder(folder, FEW)
    assert scan(out, "--corpus", str(folder), "--controls", "8") == 0
    return out, folder
