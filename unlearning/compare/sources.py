"""Where the formula of each method of ``demem.py compare`` comes from, for its row in the tables.

A name and a year, and where the paper can be found. What our code chose beside a paper stands in the method's own
module (:mod:`eval.baselines`). This module holds words alone.
"""

from __future__ import annotations

DEMEM = "Kassem 2023, DeMem, EMNLP"
OURS = "ours"
AGAIN = "no formula: trained again"

SOURCES: dict[str, str] = {
    "original": "no formula: nothing is trained",
    "demem": f"{DEMEM}, with our recipe",
    "deep": OURS,
    "deep-supervised": OURS,
    "demem-lora": f"{DEMEM}, with our recipe; LoRA: Hu 2021, arXiv 2106.09685",
    "paper": DEMEM,
    "paper-as-run": f"{DEMEM}, with the flaws of its notebook",
    "ul": "Jang 2023, arXiv 2210.01504",
    "graddiff": "Liu 2022, arXiv 2203.12817; Maini 2024, arXiv 2401.06121",
    "npo": "Zhang 2024, arXiv 2404.05868, eq. 3",
    "simnpo": "Fan 2024, arXiv 2410.07163, eq. 4",
    "distil": OURS,
    "distil-deep": OURS,
    "kl-deep": OURS,
    "grpo": "after PURGE, arXiv 2601.20568; GRPO: Shao 2024, arXiv 2402.03300",
    "undial": "Dong 2024, arXiv 2402.10052",
    "wga": "Wang 2025, arXiv 2502.19301",
    "satimp": "Yang 2025, arXiv 2505.11953",
    "jensun": "Singh 2025, arXiv 2509.02820",
    "rmu": "Li 2024, arXiv 2403.03218",
    "undo": "Lee 2025, arXiv 2506.06278",
    "dpo": "Rafailov 2023, arXiv 2305.18290, eq. 7",
    "dpo-swapped": "Rafailov 2023, arXiv 2305.18290, eq. 7",
    "dp": "Majmudar 2022, arXiv 2205.13621",
    "dp-logits": "Jang 2023, their code",
    "memfree": "Ippolito 2023, arXiv 2210.17546",
    "without-forget": AGAIN,
    "retain-only": AGAIN,
    "dedup": f"{AGAIN}; on deduplicated text: Lee 2022, arXiv 2107.06499",
}
