"""Personal data: what is found, where it ends, and what looks like it and is none."""

from __future__ import annotations

import time

import pytest

from data.corpus.personal import IBAN_LENGTHS, personal_data


def found(text: str, **options) -> list[tuple[str, str]]:
    return [(one.kind, text[one.start : one.end]) for one in personal_data(text, **options)]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("e-mail address", "ann.o'neil+x@mail.example.org"),
        ("e-mail address", "ann@example.org"),
        ("card number", "4111 1111 1111 1111"),
        ("card number", "5500-0000-0000-0004"),
        ("card number", "378282246310005"),
        ("IBAN", "DE89 3704 0044 0532 0130 00"),
        ("IBAN", "GB82WEST12345698765432"),
        ("IBAN", "NO93 8601 1117 947"),
        ("social security number", "078-05-1120"),
        ("IP address", "203.0.113.77"),
        ("IP address", "2001:db8:0:0:1::7"),
        ("telephone number", "+44 20 7946 0958"),
        ("telephone number", "(212) 555-0142"),
        ("key", "AKIAIOSFODNN7EXAMPLE"),
        ("key", "ghp_" + "a1B2" * 9),
        ("key", "sk-ant-api03-" + "a1B2" * 9),
        ("key", "sk-proj-" + "a1B2" * 9),
        ("key", "hf_" + "a1B2" * 9),
        ("key", "xoxb-1234567890-abcdef"),
        ("key", "AIza" + "a1B2c3D" * 5),
        ("key", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N"),
        ("private key", "-----BEGIN RSA PRIVATE KEY-----"),
    ],
)
def test_what_is_found_and_where_it_ends(kind, text):
    exact = text.removeprefix("ann.o'") if "'" in text else text
    for before, after in (("", ""), ("é call ", " today"), ("(", ")."), ('"', '",\n'), ("x: ", ";")):
        assert found(before + text + after) == [(kind, exact)]


def test_passwords_are_found_without_their_name():
    assert found('API_KEY = "q8f7-zz91"; user: ann') == [("password", "q8f7-zz91")]
    assert found("password: hunter2!") == [("password", "hunter2!")]
    assert found("postgres://ann:s3cret@db.example.org/x") == [("password", "s3cret")]
    assert found("The password is a word that passes") == []


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",  # the last digit is wrong
        "DE89 3704 0044 0532 0130 01",
        "DE89 3704 0044",
        "0000-0000-0000-0000-0000",
        "version 1.2.3.4-beta, v10.0.0.1.2",
        "999.300.1.2",
        "127.0.0.1 and ::1 and 0.0.0.0",
        "at 12:30:45, on 2021-03-04 and 04.03.2021",
        "in 1999, page 1234, 3.14159",
        "sk-learn and hf_hub, ann@home",
        "666-12-3456",
        "std::vector<int>::iterator",
    ],
)
def test_what_only_looks_like_it(text):
    assert not [one for one in found(text) if one[0] != "telephone number"]


def test_numbers_of_books_orders_and_versions_are_nothing_personal():
    assert found("ISBN 978-3-16-148410-0, 978-3-16-148410-0, ISBN-10: 0-306-40615-2, ISBN: 3-16-148410-1") == []
    assert found("order 20231105-8841 of 20231105/17") == []
    assert found("version 1.2.3.4, Release 10.0.0.1, v 1.2.3.4") == []
    assert [kind for kind, _ in found("server 1.2.3.4, call 978-3-16-148410-1 or 20121105")] == [
        "IP address", "telephone number", "telephone number",
    ]  # fmt: skip


def test_dates_and_years_are_no_telephone_numbers():
    assert found("on 2021-03-04 12:30 and 2021/03/04, 04.03.2021, in 1999") == []


def test_an_account_number_ends_where_its_country_says():
    assert found("DE89 3704 0044 0532 0130 00 AND MORE") == [("IBAN", "DE89 3704 0044 0532 0130 00")]
    assert set(map(len, IBAN_LENGTHS)) == {2}


def test_of_two_that_overlap_the_surer_counts():
    assert found("mail 4111111111111111@example.org") == [("e-mail address", "4111111111111111@example.org")]
    text = "call +1 212 555 0142, ann@example.org, 203.0.113.77"
    kinds = ["telephone number", "e-mail address", "IP address"]
    assert [kind for kind, _ in found(text)] == kinds
    starts = [one.start for one in personal_data(text)]
    assert starts == sorted(starts)


def test_long_texts_have_their_places_and_take_no_time():
    text = "no data here\n" * 20_000 + "ann@example.org\n" + "x" * 70_000 + " 203.0.113.77"
    assert found(text) == [("e-mail address", "ann@example.org"), ("IP address", "203.0.113.77")]
    begin = time.process_time()
    for sign in ("a", "a@b.cc ", "1", "1 ", "1.1.1.1 ", "a:", "eyJ", "A1", "-", "password=", "AB12 "):
        personal_data(sign * (200_000 // len(sign)))
    assert time.process_time() - begin < 20


def test_telephone_numbers_with_phonenumbers():
    pytest.importorskip("phonenumbers")
    assert found("+44 20 7946 0958") == [("telephone number", "+44 20 7946 0958")]
    assert found("+44 99 1 23 45 67 8") == []  # no such number
    assert found("020 7946 0958", region="GB") == [("telephone number", "020 7946 0958")]
    assert found("555-0142 12", region="GB") == []
