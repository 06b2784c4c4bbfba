"""Reading rows: what a disk does meanwhile. Hostile content is in the files beside this one."""

from pathlib import Path

import pytest

from ppo.io.rows import byte_lines

NO_BYTES = Path("/proc/self/mem")  # Linux: a plain file whose first bytes cannot be read


@pytest.mark.skipif(not NO_BYTES.is_file(), reason="this system has no such file")
def test_a_disk_that_cannot_be_read_is_told_with_the_path():
    with pytest.raises(OSError, match="Input/output error: '/proc/self/mem'"):
        list(byte_lines(NO_BYTES))
