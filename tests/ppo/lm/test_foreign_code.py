"""A stranger's files cannot make the library fetch or run code, also where the package ``kernels`` is installed."""

from __future__ import annotations

import pytest
import torch
from transformers import AttentionInterface, LlamaConfig

from ppo.lm.foreign_code import ForeignCodeError, check_attention, check_config_code, no_hub_kernels

from . import stand_in

REFUSED = {
    "attention": "attn_implementation='kernels-community/flash-attn', which may bring foreign code",
    "own attention": "attn_implementation='kernels-community/flash-attn', which may bring foreign code",
    "of anybody": "attn_implementation='anybody/anything@main', which may bring foreign code",
    "flash": "attn_implementation='flash_attention_2', which needs the package flash_attn",
    "experts": "experts_implementation='sonicmoe', which may bring foreign code",
    "quantised mxfp4": "quant_method='mxfp4', which may bring foreign code",
    "quantised eetq": "quant_method='eetq', which may bring foreign code",
    "quantised fbgemm_fp8": "quant_method='fbgemm_fp8', which may bring foreign code",
    "quantised fp8": "quant_method='fp8', which may bring foreign code",
    "quantised metal": "quant_method='metal', which may bring foreign code",
    "quantised own": "quant_method='own', which may bring foreign code",
    "checkpoint": "attn_implementation='kernels-community/flash-attn', which may bring foreign code",
    "checkpoint in parts": "attn_implementation='kernels-community/flash-attn', which may bring foreign code",
    "encoder": "attn_implementation='kernels-community/flash-attn', which may bring foreign code",
    "adapter": "it holds a PEFT adapter: load the base model",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What came of every way, in a process with a stand-in for the package."""
    return stand_in.run(tmp_path_factory.mktemp("foreign"))


def test_the_stand_in_would_notice(found):
    assert found["control"]["asked"] == ["kernels-community/flash-attn"]


@pytest.mark.parametrize("way", REFUSED)
def test_what_asks_for_foreign_code_is_refused_before_it_is_fetched(found, way):
    assert found[way]["outcome"].startswith("ValueError: ")
    assert REFUSED[way] in found[way]["outcome"]
    assert "\n" not in found[way]["outcome"]
    assert found[way]["asked"] == []


@pytest.mark.parametrize("way", ["generation", "state-space model", "harmless"])
def test_what_can_do_without_foreign_code_does_without(found, way):
    assert found[way] == {"outcome": "loaded", "asked": []}


def test_every_way_is_tried(found):
    assert found.keys() - REFUSED.keys() == {"control", "generation", "state-space model", "harmless"}


def test_attention_that_the_process_has_registered_is_known():
    with pytest.raises(ValueError, match="attn_implementation='mine'"):
        check_attention("mine")
    AttentionInterface.register("mine", lambda *arguments, **options: torch.zeros(1))
    try:
        check_attention("mine")
        check_attention({"": "eager", "text_config": "mine"})
    finally:
        del AttentionInterface._global_mapping["mine"]


def test_configs_in_one_another_are_bounded():
    config = LlamaConfig()
    config.more = config
    with pytest.raises(ValueError, match="its config holds more than 100 others"):
        check_config_code(config)


def test_the_doors_are_as_before_afterwards():
    from transformers.integrations import hub_kernels

    own = getattr(hub_kernels, "get_kernel", None)
    with no_hub_kernels():
        refusing = hub_kernels.get_kernel
    with pytest.raises(ForeignCodeError, match="code of the hub, 'somebody/anything', is not run"), no_hub_kernels():
        hub_kernels.get_kernel("somebody/anything")
    assert refusing is not own
    assert getattr(hub_kernels, "get_kernel", None) is own
