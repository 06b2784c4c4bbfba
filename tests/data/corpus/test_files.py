"""Which files a corpus has: names, order, links, special files, and a reason for everything that is left out."""

from __future__ import annotations

import gzip
import os
import sys

import pytest

import data.corpus.files
from data.corpus.files import corpus_files


def names(corpus):
    return [file.name for file in corpus.files]


def reasons(corpus):
    return {one.name: one.reason for one in corpus.skipped}


def write(folder, **texts):
    for name, text in texts.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())


def test_a_folder_is_walked_to_the_bottom_in_the_order_of_names(tmp_path):
    write(tmp_path, b_txt="b", a__z_md="z", a__b__c_py="c", a_txt="a", Z_TXT="z")
    assert names(corpus_files([tmp_path])) == ["Z.TXT", "a.txt", "a/b/c.py", "a/z.md", "b.txt"]
    assert corpus_files([tmp_path]) == corpus_files([str(tmp_path) + "/"])


def test_of_several_folders_each_name_says_which(tmp_path, monkeypatch):
    write(tmp_path, one__a_txt="1", two__a_txt="2")
    monkeypatch.chdir(tmp_path)
    assert names(corpus_files(["two", "./one"])) == ["one/a.txt", "two/a.txt"]
    assert names(corpus_files(["one/a.txt"])) == ["one/a.txt"]
    assert names(corpus_files(["one", "one/a.txt"])) == ["one/a.txt"]


def test_globs(tmp_path, monkeypatch):
    write(tmp_path, a__x_txt="1", a__b__y_txt="2", a__z_md="3")
    monkeypatch.chdir(tmp_path)
    assert names(corpus_files(["a/**/*.txt"])) == ["a/b/y.txt", "a/x.txt"]
    assert names(corpus_files(["a*"])) == ["a/b/y.txt", "a/x.txt", "a/z.md"]
    with pytest.raises(ValueError, match="matches no file"):
        corpus_files(["b/*.txt"])
    write(tmp_path, **{"odd[1]_txt": "4"})
    assert names(corpus_files(["odd[1].txt"])) == ["odd[1].txt"]  # a name is a name before it is a pattern


def test_what_is_no_text_is_named_with_the_reason(tmp_path):
    write(
        tmp_path, good_txt="text", picture_png=b"\x89PNG\r\n", zeros_bin=b"ab\x00\x01" * 9, paper_pdf=b"%PDF-1.4",
        empty_txt=b"", controls_txt=bytes(range(1, 9)) * 9, old_txt=b"BZh91", unpacked_gz=b"no gzip", _git__x_txt="x",
    )  # fmt: skip
    corpus = corpus_files([tmp_path])
    assert names(corpus) == ["good.txt"]
    found = reasons(corpus)
    assert found == {
        ".git": "a folder of version control",
        "controls.txt": "binary: it holds control characters",
        "empty.txt": "empty",
        "old.txt": "packed with bzip2; unpack it, or pack it with gzip",
        "paper.pdf": "a PDF; extract its text",
        "picture.png": "a picture",
        "unpacked.gz": found["unpacked.gz"],
        "zeros.bin": "binary: it holds zero bytes",
    }
    assert found["unpacked.gz"].startswith("it is no whole gzip file")


def test_links_and_special_files(tmp_path):
    write(tmp_path, out__secret_txt="secret", in__a_txt="a", in__deep__b_txt="b")
    folder = tmp_path / "in"
    os.symlink(tmp_path / "out" / "secret.txt", folder / "away.txt")
    os.symlink(tmp_path / "out", folder / "outside")
    os.symlink("../a.txt", folder / "deep" / "0.txt")
    os.symlink("deep", folder / "again")
    os.symlink("nowhere", folder / "broken.txt")
    os.link(folder / "a.txt", folder / "copy.txt")
    os.mkfifo(folder / "pipe.txt")
    corpus = corpus_files([folder])
    assert names(corpus) == ["a.txt", "deep/b.txt"]
    assert reasons(corpus) == {
        "again": "a link to a folder",
        "away.txt": "a link that leads out of the folder",
        "broken.txt": "is a link to a file that does not exist",
        "copy.txt": "the same file as a.txt",
        "deep/0.txt": "the same file as a.txt",
        "outside": "a link to a folder",
        "pipe.txt": "is a pipe, not a plain file; give a plain file in its place",
    }
    assert names(corpus_files([folder / "away.txt"])) == [str(folder / "away.txt")]  # who names a link means it


@pytest.mark.skipif(sys.platform != "linux", reason="names of arbitrary bytes")
def test_a_name_that_is_no_text_can_be_written(tmp_path):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "w") as file:
        file.write("x")
    (name,) = names(corpus_files([tmp_path]))
    assert name == "caf\\udce9.txt"
    assert name.encode("utf-8")


def test_a_bomb_is_left_out(tmp_path):
    write(tmp_path, good_txt="text")
    with gzip.open(tmp_path / "bomb.txt.gz", "wb") as file:
        for _ in range(40):
            file.write(b"a" * 2**20)
    assert "more than 250 times its size" in reasons(corpus_files([tmp_path]))["bomb.txt.gz"]


def test_too_large_for_a_format_that_is_read_whole(tmp_path, monkeypatch):
    monkeypatch.setitem(data.corpus.files.WHOLE_BYTES, "html", 10)
    write(tmp_path, good_txt="text longer than that", page_html="<p>0123456789")
    assert reasons(corpus_files([tmp_path])) == {"page.html": "too large: html of 13 bytes, at most 10; split it"}


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        corpus_files([tmp_path / "none"])
    with pytest.raises(ValueError, match="no corpus was given"):
        corpus_files([])
    write(tmp_path, a_png=b"\x89PNG")
    with pytest.raises(ValueError, match=r"holds no text to read: a\.png: a picture"):
        corpus_files([tmp_path])


def test_without_pyarrow_parquet_is_an_error_with_the_remedy(tmp_path, monkeypatch):
    write(tmp_path, a_parquet=b"PAR1")
    monkeypatch.setattr(data.corpus.files, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"a\.parquet: .* pip install 'ppo-lm\[parquet\]'"):
        corpus_files([tmp_path])


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root reads everything")
def test_what_nobody_may_read_is_named(tmp_path):
    write(tmp_path, good_txt="text", closed_txt="x", shut__a_txt="x")
    (tmp_path / "closed.txt").chmod(0)
    (tmp_path / "shut").chmod(0)
    found = reasons(corpus_files([tmp_path]))
    (tmp_path / "shut").chmod(0o700)
    assert found == {"closed.txt": "unreadable: Permission denied", "shut": "unreadable: Permission denied"}
