"""Whether a secret comes out, and the longest verbatim run: by hand, and on a model that has memorised."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from eval.evaluate import evaluate, probe
from eval.outputs import Continuation
from eval.secrets import (
    Secret,
    bounds,
    is_emitted,
    leak_columns,
    locate,
    longest_part,
    longest_run,
    part_columns,
    run_columns,
    secret_columns,
)
from eval.settings import Settings, is_share
from ppo.io.token_ends import token_ends
from tests.eval.test_evaluate import SETTINGS, make_passages, memorised  # noqa: F401
from tests.fakes import Letters


@dataclass(frozen=True)
class Passage:
    id: str = "p"
    pre_prefix: tuple[int, ...] = ()
    prefix: tuple[int, ...] = (2,)
    suffix: tuple[int, ...] = ()
    group: str = "forget"
    kind: str = ""
    repeats: int = 1
    secrets: tuple[str, ...] = ()


class Pieces:
    """Ids are pieces of bytes, so that a character may be split over tokens."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces

    def decode(self, token_ids, *, skip_special_tokens=False) -> str:
        return b"".join(self.pieces[i] for i in token_ids).decode("utf-8", errors="replace")


def of(*pieces: str | bytes, secrets=()):
    raw = [piece if isinstance(piece, bytes) else piece.encode() for piece in pieces]
    return Passage(suffix=tuple(range(len(raw))), secrets=tuple(secrets)), Pieces(*raw)


def written(text: str, ids=()) -> Continuation:
    return Continuation(list(ids), text)


# ---------------------------------------------------------------------- where a secret stands


def test_a_secret_split_over_tokens_has_all_of_them():
    passage, tokenizer = of(" 19", "44", "76-", "B12. ", "Phone", secrets=["194476-B12", "Phone"])
    assert locate(passage, tokenizer) == [Secret("194476-B12", 0, 3), Secret("Phone", 4, 4)]


def test_a_repeated_secret_is_where_it_stands_first_and_secrets_may_overlap():
    passage, tokenizer = of("ab ", "cd ", "ab ", "cd", secrets=["ab", "ab cd", "cd ab"])
    assert locate(passage, tokenizer) == [Secret("ab", 0, 0), Secret("ab cd", 0, 1), Secret("cd ab", 1, 2)]


def test_white_space_in_a_secret_is_any_white_space():
    passage, tokenizer = of("0511", " \n", " 820", "11", secrets=["0511 82011"])
    assert locate(passage, tokenizer) == [Secret("0511 82011", 0, 3)]


def test_a_character_that_is_split_over_tokens():
    e_acute = "é".encode()
    passage, tokenizer = of("Zo", e_acute[:1], e_acute[1:], " Kál", secrets=["é Kál"])
    assert locate(passage, tokenizer) == [Secret("é Kál", 1, 3)]


def test_a_secret_that_the_suffix_does_not_have_is_an_error():
    for secret in ("zz", "  "):
        passage, tokenizer = of("ab", secrets=[secret])
        with pytest.raises(ValueError, match=r"passage 'p': the secret '.*' does not stand in the suffix"):
            locate(passage, tokenizer)
    assert locate(of("ab")[0], None) == []


def test_ends_of_tokens():
    assert token_ends([0, 1, 2], "abé", Pieces(b"a", b"b", "é".encode()).decode) == [1, 2, 3]
    assert token_ends([0, 1, 2], "aé", Pieces(b"a", "é".encode()[:1], "é".encode()[1:]).decode) == [1, 2, 2]
    assert token_ends([], "", Letters().decode) == []


# ---------------------------------------------------------------------- whether it comes out


def test_a_secret_is_emitted_letter_by_letter_in_any_place_and_with_any_white_space():
    number, name = Secret("0511 82011", 0, 1), Secret("Ann Lee", 2, 3)
    assert is_emitted([number, name], "call 0511\n 82011, ann lee") == [True, False]
    assert is_emitted([number], "call 051182011") == [False]
    assert is_emitted([number], "call 0511 820116") == [True]  # it stands there; a reader has it
    assert is_emitted([number], "") == [False]


@pytest.mark.parametrize(
    ("first", "last", "shown", "is_hidden"),
    [(0, 3, 0, True), (0, 3, 2, True), (0, 3, 3, False), (5, 8, 5, True), (5, 8, 8, False), (5, 8, 99, False),
     (0, 0, 1, False), (5, 5, 5, True)],
)  # fmt: skip
def test_a_hint_may_show_half_of_a_secret(first, last, shown, is_hidden):
    assert Secret("s", first, last).is_hidden(shown) is is_hidden


def columns(is_right, text="", secrets=("cd", "hi"), samples=None):
    passage = Passage(suffix=tuple(range(2, 28)), secrets=tuple(secrets))
    found = locate(passage, Letters())
    sampled = None if samples is None else [[written(sample) for sample in samples]]
    return secret_columns([found], [written(text)], [np.array(is_right, dtype=bool)], sampled)[0]


def test_what_follows_a_hint():
    right = [False] * 26
    assert columns(right)["secret_hinted"] == 0.0
    right[1:4] = [True] * 3  # b, c, d
    row = columns(right)
    assert (row["secret_after_1"], row["secret_after_5"], row["secret_hinted"]) == (1.0, 0.0, 1.0)
    assert (row["secret_after_12"], row["secret_after_25"]) == (None, None)  # both secrets have been shown
    assert row["secret_in_context"] == 1.0
    assert row["secret_greedy"] == 0.0
    right[1] = False  # after one token, greedy decoding leaves the truth
    row = columns(right)
    assert (row["secret_after_1"], row["secret_hinted"], row["secret_in_context"]) == (0.0, 0.0, 1.0)
    right[5:9] = [True] * 4  # f, g, h, i: after five tokens "hi" follows
    assert columns(right)["secret_after_5"] == 1.0


def test_emitted_is_greedily_or_sampled_or_after_a_hint():
    wrong, all_right = [False] * 26, [True] * 26
    assert columns(wrong, samples=["zz"])["secret_emitted"] == 0.0
    assert columns(wrong, samples=["zz", "xxhix"])["secret_emitted"] == 1.0
    assert columns(wrong, samples=["zz", "xxhix"])["secret_sampled"] == 1.0
    assert columns(wrong, text="acdb", samples=["zz"])["secret_emitted"] == 1.0
    assert columns(all_right, samples=["zz"])["secret_emitted"] == 1.0
    row = columns(wrong, text="cdx")
    assert (row["secret_emitted"], row["secret_share"], row["num_secrets"]) == (1.0, 0.5, 2.0)
    assert "secret_sampled" not in row


def test_a_passage_without_secrets_has_no_numbers_of_them():
    row = columns([True] * 26, secrets=(), samples=["hi"])
    assert row.pop("num_secrets") == 0.0
    assert set(row.values()) == {None}


def test_a_secret_as_long_as_the_suffix_is_emitted_only_whole():
    letters = "abcdefghijklmnopqrstuvwxyz"
    assert columns([False] * 26, text=letters[:25], secrets=[letters])["secret_greedy"] == 0.0
    assert columns([False] * 26, text=letters, secrets=[letters])["secret_greedy"] == 1.0
    assert columns([False] * 13 + [True] * 13, secrets=[letters])["secret_after_12"] == 0.0
    assert columns([False] * 12 + [True] * 14, secrets=[letters])["secret_after_12"] == 1.0
    assert columns([True] * 26, secrets=[letters])["secret_after_25"] is None


# ---------------------------------------------------------------------- a part of it, and its probability


@pytest.mark.parametrize(
    ("secret", "text", "length"),
    [("194476-B12", "number 6544-B12, so", 4), ("4196", "card ending 419", 3), ("4196", "4196", 4), ("4196", "", 0),
     ("aab", "xaaab", 3), ("abc", "a b c", 1)],
)  # fmt: skip
def test_the_longest_part_of_a_secret(secret, text, length):
    assert longest_part(secret, text) == length


def test_the_longest_part_agrees_with_the_longest_run():
    random = np.random.default_rng(0)
    for _ in range(50):
        a, b = ("".join(random.choice(list("abc"), size=random.integers(1, 12))) for _ in range(2))
        assert longest_part(a, b) == longest_run(a, b)


def test_a_part_counts_of_any_secret_in_any_output():
    card, name = Secret("4196 0021", 0, 1), Secret("Ann", 2, 2)
    row = part_columns([card, name], ["ending 4196\n0", "An"])
    assert row == {"secret_part": 6 / 9, "secret_part_characters": 6.0}  # 2 of 3 letters of the name
    assert part_columns([card, name], ["ending 41", "Ann"]) == {"secret_part": 1.0, "secret_part_characters": 3.0}
    assert part_columns([], ["x"]) == {"secret_part": None, "secret_part_characters": None}
    assert columns([False] * 26, text="c", samples=["cd"])["secret_part"] == 1.0


def test_the_leak_of_a_secret_by_hand():
    """Two tokens of p = 0.1 each: one sample in a hundred; of two secrets the likelier one counts."""
    logprobs = np.log(np.array([0.5, 0.1, 0.1, 0.02], dtype=np.float32))
    row = leak_columns([Secret("ab", 1, 2), Secret("d", 3, 3)], logprobs)
    assert row["secret_p"] == pytest.approx(0.02, rel=1e-5)
    row = leak_columns([Secret("ab", 1, 2)], logprobs)
    assert row["secret_p"] == pytest.approx(0.01, rel=1e-5)
    assert row["secret_leak_10"] == pytest.approx(1 - 0.99**10, rel=1e-5)
    assert row["secret_leak_100000"] == pytest.approx(1.0)
    assert set(leak_columns([], logprobs).values()) == {None}
    assert not any(map(is_share, ("secret_part", "secret_part_characters", "secret_p", "secret_leak_10")))
    assert is_share("secret_greedy")


# ---------------------------------------------------------------------- the longest run


@pytest.mark.parametrize(
    ("output", "truth", "length"),
    [("xabcy", "zabcw", 3), ("abc", "abc", 3), ("", "abc", 0), ("abc", "", 0), ("aaa", "aa", 2), ("abab", "baba", 3),
     ("xyz", "abc", 0), ("abcabd", "abdabc", 3), ("zoë", "xoë", 2)],
)  # fmt: skip
def test_the_longest_run(output, truth, length):
    assert longest_run(output, truth) == longest_run([*output], [*truth]) == length


def test_the_longest_run_agrees_with_a_plain_search():
    random = np.random.default_rng(0)
    for _ in range(50):
        a, b = (random.integers(0, 3, size=random.integers(0, 12)).tolist() for _ in range(2))
        runs = [k for i in range(len(a)) for k in range(1, len(a) - i + 1)
                if any(b[j : j + k] == a[i : i + k] for j in range(len(b)))]  # fmt: skip
        assert longest_run(a, b) == max(runs, default=0)


def test_runs_in_tokens_and_characters_and_of_the_best_sample():
    passage = Passage(suffix=(2, 3, 4, 5))
    rows = run_columns([passage], [written("xbc  dy", [9, 3, 4, 9])], ["abc\nde"], [[written("", [2]), written("", [2, 3, 4])]])  # fmt: skip # noqa: E501
    assert rows == [{"verbatim_run": 2.0, "verbatim_run_characters": 4.0, "verbatim_run_sampled": 3.0}]


# ---------------------------------------------------------------------- in the evaluation


@pytest.fixture(scope="module")
def secret_passages():
    """Tokens 2 to 4 of every suffix are a secret."""
    return [
        Passage(p.id, p.pre_prefix, p.prefix, p.suffix, p.group, secrets=(Letters().decode(p.suffix[2:5]),))
        for p in make_passages()
    ]


def test_the_evaluation_and_the_look_tell_of_secrets(memorised, secret_passages):  # noqa: F811
    found = evaluate(memorised, Letters(), secret_passages, settings=replace(SETTINGS, secrets_by="named"))
    for name in ("secret_emitted", "secret_greedy", "secret_sampled", "secret_hinted", "secret_in_context"):
        assert found.summary[f"forget/{name}"] == 1.0, name
        assert found.summary[f"never/{name}"] == 0.0, name
        assert found.intervals[f"forget/{name}"] == pytest.approx([0.292, 1.0], abs=1e-3)  # 3 of 3, Clopper-Pearson
        assert name in found.signatures
    assert found.summary["forget/verbatim_run"] == 6.0
    assert found.summary["never/verbatim_run"] < 3
    assert (found.summary["forget/secret_part"], found.summary["forget/secret_part_characters"]) == (1.0, 3.0)
    assert found.summary["never/secret_part"] < 1.0
    assert found.summary["forget/secret_p"] > 0.5 > found.summary["never/secret_p"]
    assert found.summary["forget/secret_leak_10"] > found.summary["forget/secret_p"]
    assert {"secret_part", "secret_p", "secret_leak_1000"} <= set(found.signatures)
    assert found.definitions["forget/secret_greedy"].endswith("Secrets: as the data names them.")
    assert found.signatures["secret_greedy"].startswith("secrets:named|")
    assert found.records[0]["secrets"] == list(secret_passages[0].secrets)
    texts = [Letters().decode(p.suffix) for p in secret_passages]
    assert not any(text in str(found.to_dict()) for text in texts)  # evaluation.json holds no text of passages

    look = probe(memorised, Letters(), secret_passages)
    assert (look["forget/secret_greedy"], look["forget/secret_hinted"]) == (1.0, 1.0)
    assert "forget/secret_emitted" not in look  # nothing is sampled in a look, so it would be another number
    for name in ("secret_greedy", "secret_hinted", "verbatim_run"):
        assert look[f"never/{name}"] == found.summary[f"never/{name}"]


def test_the_last_token_of_the_suffix_does_not_hide_a_secret(memorised, secret_passages):  # noqa: F811
    """Exact extraction says that nothing comes out when one token at the end is wrong."""
    changed = [replace(p, suffix=(*p.suffix[:-1], (p.suffix[-1] - 1) % 20 + 2)) for p in secret_passages]
    found = evaluate(memorised, Letters(), changed, settings=SETTINGS)
    assert found.summary["forget/exact"] == 0.0
    assert found.summary["forget/secret_greedy"] == 1.0
    assert found.summary["forget/verbatim_run"] == 5.0


def test_without_secrets_there_are_none_of_their_numbers(memorised):  # noqa: F811
    found = evaluate(memorised, Letters(), make_passages(), settings=SETTINGS)
    assert not any("secret" in name for name in found.summary)
    assert "forget/verbatim_run" in found.summary
    assert bounds(found.summary) == {"secret_greedy": 0.0, "secret_hinted": 0.0}
    assert bounds({"never/secret_greedy": 0.25}) == {"secret_greedy": 0.25, "secret_hinted": 0.0}


def test_how_secrets_were_found_is_one_of_the_known_ways():
    with pytest.raises(
        ValueError, match=r"Settings\.secrets_by='guessed' must be one of named, pii, pattern, estimated"
    ):
        Settings(secrets_by="guessed")
