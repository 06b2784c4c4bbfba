"""Which layer BERTScore takes of a known encoder, and how it writes a text for a byte-level tokenizer."""

from __future__ import annotations

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel

from rewards.bertscore import BertScore, marks_a_space
from rewards.bertscore_layers import known_layer

TEXTS = ["the cat sat on the mat", "a cat is on a mat", "the dog ran to the cat"] * 20


def roberta(folder, *, layers=12):
    """A small RoBERTa with a byte-level tokenizer, saved."""
    own = ByteLevelBPETokenizer()
    own.train_from_iterator(TEXTS, vocab_size=300, special_tokens=["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=own._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=66, pad_token_id=1,
    )  # fmt: skip
    RobertaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("roberta-large", 17), ("FacebookAI/roberta-large", 17), ("microsoft/deberta-large", 16),
        ("google-bert/bert-base-uncased", 9), ("/models/DistilBERT-base-uncased/", 5), ("my-encoder", None),
    ],
)  # fmt: skip
def test_an_encoder_is_known_by_the_last_part_of_its_name(name, layer):
    assert known_layer(name) == layer


def test_a_known_encoder_gets_its_layer(tmp_path, recwarn):
    score = BertScore.load(roberta(tmp_path / "roberta-base"), device="cpu")
    assert score.layer == 10
    assert "layer:10" in score.signature
    assert not [w for w in recwarn if "best layer" in str(w.message)]
    assert BertScore.load(str(tmp_path / "roberta-base"), layer=3, device="cpu").layer == 3


def test_an_unknown_encoder_gets_its_last_layer_and_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="no best layer of .*own is known, so its last one is compared: give layer="):
        assert BertScore.load(roberta(tmp_path / "own"), device="cpu").layer == -1


def test_a_known_encoder_that_was_cut_short_is_refused_when_loaded(tmp_path):
    folder = roberta(tmp_path / "roberta-large", layers=4)
    with pytest.raises(ValueError, match="layer=17 does not exist"):
        BertScore.load(folder, device="cpu")


def test_the_first_word_of_a_byte_level_tokenizer_has_its_space(tmp_path):
    """As in the bert-score package: the first word is the same token as the word inside a text."""
    score = BertScore.load(roberta(tmp_path / "roberta-base"), device="cpu")
    assert marks_a_space(score.tokenizer)
    seen = []
    own = score.tokenizer

    def tokenizer(texts, **options):
        seen.extend(texts)
        return own(texts, **options)

    score.tokenizer = tokenizer
    score(["cat ", ""], ["the cat", "  "])
    assert seen == [" cat", "", " the cat", ""]
    assert own(" cat")["input_ids"][-1] == own("the cat")["input_ids"][-1] != own("cat")["input_ids"][-1]
