"""Which layer of an encoder BERTScore compares: the one that agrees best with people's judgement of translations.

The layers are those of the bert-score package, version 0.3.13 (Zhang et al. 2020; chosen on WMT16). Encoders with a
decoder (BART, T5, Pegasus) are not listed. An encoder is found by the last part of its name, whoever publishes it.
"""

from __future__ import annotations

from pathlib import PurePath

LAYERS: dict[str, int] = {
    "bert-base-uncased": 9, "bert-large-uncased": 18, "bert-base-cased-finetuned-mrpc": 9,
    "bert-base-multilingual-cased": 9, "bert-base-chinese": 8, "bert-base-turkish-cased": 10,
    "roberta-base": 10, "roberta-large": 17, "roberta-large-mnli": 19, "roberta-base-openai-detector": 7,
    "roberta-large-openai-detector": 15, "distilroberta-base": 5, "distilbert-base-uncased": 5,
    "distilbert-base-uncased-distilled-squad": 4, "distilbert-base-multilingual-cased": 5,
    "distilbert-base-turkish-cased": 4, "xlnet-base-cased": 5, "xlnet-large-cased": 7, "xlm-mlm-en-2048": 6,
    "xlm-mlm-100-1280": 10, "scibert_scivocab_uncased": 8, "scibert_scivocab_cased": 9, "scibert_basevocab_uncased": 9,
    "albert-base-v1": 10, "albert-large-v1": 17, "albert-xlarge-v1": 16, "albert-xxlarge-v1": 8, "albert-base-v2": 9,
    "albert-large-v2": 14, "albert-xlarge-v2": 13, "albert-xxlarge-v2": 8, "xlm-roberta-base": 9,
    "xlm-roberta-large": 17, "electra-small-generator": 9, "electra-small-discriminator": 11,
    "electra-base-generator": 10, "electra-base-discriminator": 9, "electra-large-generator": 18,
    "electra-large-discriminator": 14, "bertweet-base": 9, "finbert": 10, "spanbert-base-cased": 8,
    "spanbert-large-cased": 17, "deberta-base": 9, "deberta-base-mnli": 9, "deberta-large": 16,
    "deberta-large-mnli": 18, "deberta-xlarge": 18, "deberta-xlarge-mnli": 40, "deberta-v2-xlarge": 10,
    "deberta-v2-xlarge-mnli": 17, "deberta-v2-xxlarge": 21, "deberta-v2-xxlarge-mnli": 22, "deberta-v3-xsmall": 10,
    "deberta-v3-small": 4, "deberta-v3-base": 9, "deberta-v3-large": 12, "mdeberta-v3-base": 10,
    "DeBERTa-v3-large-mnli": 18, "conv-bert-base": 10, "conv-bert-small": 10, "conv-bert-medium-small": 9,
    "mpnet-base": 8, "squeezebert-uncased": 9, "squeezebert-mnli": 9, "squeezebert-mnli-headless": 9,
    "longformer-base-4096": 7, "longformer-large-4096": 14, "longformer-large-4096-finetuned-triviaqa": 14,
    "bigbird-roberta-base": 10, "bigbird-roberta-large": 14, "bigbird-base-trivia-itc": 8,
    "unsup-simcse-bert-base-uncased": 10, "unsup-simcse-bert-large-uncased": 18, "unsup-simcse-roberta-base": 8,
    "unsup-simcse-roberta-large": 13, "sup-simcse-bert-base-uncased": 10, "sup-simcse-bert-large-uncased": 18,
    "sup-simcse-roberta-base": 10, "sup-simcse-roberta-large": 16,
    "bert_uncased_L-2_H-128_A-2": 1, "bert_uncased_L-2_H-256_A-4": 1, "bert_uncased_L-2_H-512_A-8": 1,
    "bert_uncased_L-2_H-768_A-12": 2, "bert_uncased_L-4_H-128_A-2": 3, "bert_uncased_L-4_H-256_A-4": 3,
    "bert_uncased_L-4_H-512_A-8": 3, "bert_uncased_L-4_H-768_A-12": 3, "bert_uncased_L-6_H-128_A-2": 5,
    "bert_uncased_L-6_H-256_A-4": 5, "bert_uncased_L-6_H-512_A-8": 5, "bert_uncased_L-6_H-768_A-12": 5,
    "bert_uncased_L-8_H-128_A-2": 7, "bert_uncased_L-8_H-256_A-4": 7, "bert_uncased_L-8_H-512_A-8": 6,
    "bert_uncased_L-8_H-768_A-12": 7, "bert_uncased_L-10_H-128_A-2": 8, "bert_uncased_L-10_H-256_A-4": 8,
    "bert_uncased_L-10_H-512_A-8": 9, "bert_uncased_L-10_H-768_A-12": 8, "bert_uncased_L-12_H-128_A-2": 10,
    "bert_uncased_L-12_H-256_A-4": 11, "bert_uncased_L-12_H-512_A-8": 10, "bert_uncased_L-12_H-768_A-12": 9,
}  # fmt: skip
_BY_NAME = {name.lower(): layer for name, layer in LAYERS.items()}


def known_layer(name: str) -> int | None:
    """The layer of an encoder by its hub id or folder, or None for one that is not listed.

    >>> known_layer("FacebookAI/roberta-large")
    17
    """
    return _BY_NAME.get(PurePath(name).name.lower())
