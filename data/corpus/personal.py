"""Personal data in a text: e-mail addresses, telephone, card and account numbers, keys, addresses of machines.

Numbers with a check digit count only if it is right. Telephone numbers are judged by the package phonenumbers, where it
is installed and the number or the caller says the country; the others must look like one (:data:`data.secrets.PII`).
Names, streets and diagnoses are not found. This module knows strings.
"""

from __future__ import annotations

import ipaddress
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import regex

from data.secrets import PII

PIECE_CHARACTERS = 2**16  # looked through at once; it ends where a line ends
_CARD = regex.compile(r"(?<![\w.-])(?<![A-Z]{2}\d\d )[2-6](?:[ -]?\d){12,18}(?![\w@]|[.-]\d)")
_SOCIAL_SECURITY = regex.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
_IPV4 = regex.compile(r"(?<![\w.-])(?<!(?i:\b(?:version|release|ver\.?|v\.?)) )(?:\d{1,3}\.){3}\d{1,3}(?![\w]|[.-]\w)")
_IPV6 = regex.compile(r"(?<![\w:.])(?=[\da-fA-F]*:[\da-fA-F:]*:)[\da-fA-F:]{6,39}(?:\.\d{1,3}){0,3}(?![\w:])")
_DATE = regex.compile(r"(?:19|20)\d\d[-./]\d\d?[-./]\d\d?|\d\d?[-./]\d\d?[-./](?:19|20)\d\d"
                      r"|(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])[-/]")  # fmt: skip
_ISBN = regex.compile(r"(?i)\bISBN(?:[- ]?1[03])?\b[:#]?\s{0,3}$")
_KEYS = {
    "key of Amazon Web Services": r"(?:AKIA|ASIA)[A-Z0-9]{16}",
    "key of Anthropic": r"sk-ant-[\w-]{20,200}",
    "key of GitHub": r"gh[pousr]_[A-Za-z0-9]{36,251}|github_pat_\w{50,251}",
    "key of GitLab": r"glpat-[\w-]{20,100}",
    "key of Google": r"AIza[\w-]{35}",
    "key of Hugging Face": r"hf_[A-Za-z0-9]{30,100}",
    "key of npm or PyPI": r"npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,300}",
    "key of OpenAI": r"sk-(?:proj-|svcacct-)?[A-Za-z0-9_-]{20,200}",
    "key of SendGrid": r"SG\.[\w-]{16,40}\.[\w-]{30,60}",
    "key of Slack": r"xox[abeoprs]-[A-Za-z0-9-]{10,250}",
    "key of Stripe": r"(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{16,200}",
    "signed token": r"eyJ[\w-]{10,2000}\.eyJ[\w-]{10,4000}\.[\w-]{10,1000}",
}
_KEY = regex.compile("|".join(rf"(?<!\w)(?:{pattern})(?!\w)" for pattern in _KEYS.values()))
_PRIVATE_KEY = regex.compile(r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_PASSWORD = regex.compile(
    r"""(?i)(?<![a-z])(?:api[ _-]?key|secret[ _-]?key|access[ _-]?token|auth[ _-]?token|client[ _-]?secret"""
    r"""|passw(?:or)?d|passphrase)["']?\s{0,3}(?:=|:|=>|is)\s{0,3}["']?([^\s"',;<>]{6,200})"""
    r"""|://[^\s:/@"']{1,100}:([^\s/@"']{3,100})@"""
)
IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BI": 27, "BR": 29,
    "BY": 28, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DJ": 27, "DK": 18, "DO": 28, "EE": 20, "EG": 29,
    "ES": 24, "FI": 18, "FK": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28,
    "HN": 28, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20,
    "LB": 28, "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19,
    "MN": 20, "MR": 27, "MT": 31, "MU": 30, "NI": 28, "NL": 18, "NO": 15, "OM": 23, "PK": 24, "PL": 28, "PS": 29,
    "PT": 25, "QA": 29, "RO": 24, "RS": 22, "RU": 33, "SA": 24, "SC": 31, "SD": 18, "SE": 24, "SI": 19, "SK": 24,
    "SM": 27, "SO": 23, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20,
    "YE": 30,
}  # fmt: skip
"""Characters of an account number of each country, without spaces (the registry of SWIFT, ISO 13616)."""


@dataclass(frozen=True)
class Personal:
    """A piece of personal data: ``text[start:end]``, and what ``kind`` it is."""

    kind: str
    start: int
    end: int


def personal_data(text: str, *, region: str | None = None) -> list[Personal]:
    """All personal data of a text, in its order, without overlap: of two that overlap, the surer kind counts.

    ``region``: such as "GB"; telephone numbers without a country are taken for numbers of it (phonenumbers alone).
    """
    found: list[Personal] = []
    for offset, piece in _pieces(text):
        taken: list[tuple[int, int]] = []
        for kind, start, end in _candidates(piece, region):
            place = bisect(taken, (start, end))
            is_free = (not place or taken[place - 1][1] <= start) and (place == len(taken) or end <= taken[place][0])
            if is_free:
                taken.insert(place, (start, end))
                found.append(Personal(kind, offset + start, offset + end))
    return sorted(found, key=lambda one: one.start)


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    start = 0
    while start < len(text):
        limit = start + PIECE_CHARACTERS
        end = len(text) if limit >= len(text) else text.rfind("\n", start, limit) + 1 or limit
        yield start, text[start:end]
        start = end


def _candidates(text: str, region: str | None) -> Iterator[tuple[str, int, int]]:
    """(kind, start, end), the surest kinds first."""
    for found in _PRIVATE_KEY.finditer(text):
        yield "private key", *found.span()
    for found in _KEY.finditer(text):
        yield "key", *found.span()
    for found in _PASSWORD.finditer(text):
        yield "password", *found.span(1 if found[1] else 2)
    for found in PII["IBAN"].expression.finditer(text):
        if length := _iban_length(found[0]):
            yield "IBAN", found.start(), found.start() + length
    for found in _CARD.finditer(text):
        if _is_card(found[0]):
            yield "card number", *found.span()
    for found in PII["e-mail address"].expression.finditer(text):
        yield "e-mail address", *found.span()
    for found in _SOCIAL_SECURITY.finditer(text):
        yield "social security number", *found.span()
    for pattern in (_IPV4, _IPV6):
        for found in pattern.finditer(text):
            if _is_address(found[0]):
                yield "IP address", *found.span()
    telephone = PII["telephone number, seven digits or more"]
    library = _phonenumbers()
    for found in telephone.expression.finditer(text):
        if telephone.is_kept(found[0]) and not _is_book(text, found) and _is_telephone(found[0], library, region):
            yield "telephone number", *found.span()


def _iban_length(found: str) -> int:
    """How many characters at the start are an account number whose check is right; 0 if none are."""
    length, count = IBAN_LENGTHS.get(found[:2], 0), 0
    for place, sign in enumerate(found, start=1):
        count += sign != " "
        if length and count == length:
            number = found[:place].replace(" ", "")
            digits = "".join(str(int(sign, 36)) for sign in number[4:] + number[:4])
            return place if int(digits) % 97 == 1 else 0
    return 0


def _is_card(found: str) -> bool:
    """Whether the last digit is right (Luhn), and the number is none of one digit alone."""
    digits = [int(sign) for sign in found if sign.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 and len(set(digits)) > 1


def _is_address(found: str) -> bool:
    """Whether a machine elsewhere can have it: neither 127.0.0.1 nor 0.0.0.0."""
    try:
        address = ipaddress.ip_address(found)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified or address.is_multicast)


def _is_book(text: str, found: regex.Match[str]) -> bool:
    """Whether it is an ISBN: it is called one, or has 13 digits, the prefix of books and the right last digit."""
    if _ISBN.search(text, max(0, found.start() - 16), found.start()):
        return True
    digits = [int(sign) for sign in found[0] if sign.isdigit()]
    is_prefixed = len(digits) == 13 and digits[:3] in ([9, 7, 8], [9, 7, 9]) and found[0][0] != "+"
    return is_prefixed and (sum(digits[::2]) + 3 * sum(digits[1::2])) % 10 == 0


def _is_telephone(found: str, library: Any, region: str | None) -> bool:
    if _DATE.match(found):
        return False
    if library is None or not (found.startswith("+") or region):
        return True
    try:
        return bool(library.is_valid_number(library.parse(found, region)))
    except library.NumberParseException:
        return False


def _phonenumbers() -> Any:
    """The package, or None where it is not installed."""
    try:
        import phonenumbers
    except ImportError:
        return None
    return phonenumbers
