"""What a writer of weights raises, and what becomes of it."""

import pytest
from safetensors import SafetensorError

from ppo.checkpoint.weights import naming_folder


@pytest.mark.parametrize("error", [MemoryError("no memory"), RuntimeError("a bug"), ValueError("bad")])
def test_what_is_no_error_of_the_disk_passes_as_it_is(tmp_path, error):
    with pytest.raises(type(error)) as caught, naming_folder(tmp_path):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("error", [Exception("No space left on device"), SafetensorError("I/O error")])
def test_a_writer_s_own_error_of_the_disk_names_the_folder(tmp_path, error):
    with pytest.raises(OSError, match=str(tmp_path)), naming_folder(tmp_path):
        raise error
