"""What is measured on the meta device is what a real device computes and keeps."""

from __future__ import annotations

import dataclasses
from itertools import product

import pytest
import torch
from networks import LAYOUT, MEMORY, SIZES, given, network, window
from torch.utils.flop_counter import FlopCounterMode

from flowact.budget.accelerator import Accelerator, Flops, Meter
from flowact.budget.costs import Precision, Sizes, evaluation_cost, saved_bytes, training_cost
from flowact.errors import UserError
from flowact.models.presets import PUBLISHED_INPUTS, preset
from flowact.models.rope import window_rotation
from flowact.types import FULL_VISIBILITY, Segment, WindowLayout

FLOAT32, MIXED = Precision("32-true"), Precision("bf16-mixed")
CHOICES = ("none", "selective", "full")
VARIANTS = ({"audio": "joint"}, {"audio": "branch", "activation": "gelu", "query_key_norm": "rms"}, {"audio": "cross"}, {"reference": "channels"})


def real_training(model, inputs, autocast):
    """Saved bytes, copies of weights, peak, and operations of forward and backward of a training on this CPU, as Lightning's plugins run it."""
    with Meter(given(model, inputs)) as meter:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            result = model(*inputs)
        saved, copied = meter.alive, meter.copies_of_weights
        hooks = [p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None)) for p in model.parameters()]
        result.sum().backward()
    for hook in hooks:
        hook.remove()
    return saved - copied, copied, meter.peak, meter.flops


@pytest.mark.parametrize(("options", "checkpointing"), [*product(VARIANTS[:1], CHOICES), *product(VARIANTS[1:], ("none",))], ids=str)
def test_a_training_in_float32_keeps_exactly_what_is_predicted(options, checkpointing):
    options = options | {"checkpointing": checkpointing}
    saved, copied, peak, flops = real_training(network("cpu", **options), window(), autocast=False)
    cost = training_cost(network(**options), SIZES, LAYOUT, FLOAT32, batch=2, on_cpu=True)
    assert (cost.saved_bytes, cost.copied_bytes, cost.flops) == (saved, copied, flops)
    # a CPU computes GELU by a formula of ours, with other tensors on the way
    assert cost.peak_bytes == pytest.approx(peak, rel=0.1 if options.get("activation") == "gelu" else 1e-3)
    assert saved_bytes(network(**options), SIZES, LAYOUT, FLOAT32, batch=2, on_cpu=True) == saved


@pytest.mark.parametrize("checkpointing", CHOICES)
def test_a_training_under_autocast_keeps_what_is_predicted(checkpointing):
    saved, copied, peak, flops = real_training(network("cpu", checkpointing=checkpointing), window(), autocast=True)
    cost = training_cost(network(checkpointing=checkpointing), SIZES, LAYOUT, MIXED, batch=2, on_cpu=True)
    assert (cost.copied_bytes, cost.flops) == (copied, flops)
    assert cost.saved_bytes == pytest.approx(saved, rel=0.01)  # statistics of layer norms, which a CPU keeps in bfloat16
    assert cost.peak_bytes == pytest.approx(peak, rel=0.02)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.skipif(torch.version.cuda is None, reason="torch is built without CUDA, whose autocast is asked")
@pytest.mark.parametrize(("options", "checkpointing"), zip(VARIANTS, (*CHOICES, "none"), strict=True), ids=str)
def test_autocast_on_the_meta_device_is_that_of_cuda(options, checkpointing):
    from torch._subclasses.fake_tensor import FakeTensorMode  # knows CUDA's rules without a GPU

    options = options | {"checkpointing": checkpointing}

    def alive(device, autocast):
        model, inputs = network(device, **options), window(device)
        with Accelerator(autocast) as mode:
            with Meter(given(model, inputs)) as meter:
                result = model(*inputs)
            mode.forget_copies()
        return meter.alive, meter.peak, result.dtype

    predicted = alive("meta", True)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            torch.set_autocast_enabled("cuda", True)
            torch.set_autocast_dtype("cuda", torch.bfloat16)
            torch.autocast_increment_nesting()
            try:
                found = alive("cuda", False)
            finally:
                torch.autocast_decrement_nesting()
                torch.set_autocast_enabled("cuda", False)
                torch.clear_autocast_cache()
    finally:
        window_rotation.cache_clear()  # it holds tables without data
    assert predicted[1:] == found[1:]
    # copies of weights that only the cache held are gone in the prediction
    assert predicted[0] <= found[0] <= predicted[0] + 2 * sum(p.numel() for p in network(**options).parameters())


def hand_count(width, blocks, tokens, area):
    """Products and attention of our blocks: 12 d^2 multiplications for a token (4 of attention's maps, 8 of the MLP's), 2 d for a pair."""
    return Flops(2 * tokens * blocks * 12 * width**2, 4 * width * blocks * area)


@pytest.mark.parametrize("causal", [True, False])
def test_operations_are_those_of_a_formula_by_hand(causal):
    visual, text, audio = 30 * 52, 512, 4
    memory, stream = [*range(3)], [*range(3, 6)]
    segments = (Segment("reference", 1, -13), Segment("long", 1, -7), Segment("short", 1, -1), *(Segment("stream", 3, 3 * k) for k in range(3)))
    layout = WindowLayout(segments) if causal else WindowLayout(segments, FULL_VISIBILITY)
    sizes = Sizes((16, 60, 104), (text, 4096), (audio, 512))
    with torch.device("meta"):
        model = preset("1.3B", **PUBLISHED_INPUTS, num_double_blocks=2, num_single_blocks=4)
    tokens = [s.num_frames * (visual + audio) + text for s in segments]
    kept, streamed = sum(tokens[i] for i in memory), sum(tokens[i] for i in stream)
    area = kept**2 + streamed * (kept + streamed) if causal else (kept + streamed) ** 2
    cost = evaluation_cost(model, sizes, layout, MIXED)
    hand = hand_count(1536, 6, kept + streamed, area)
    assert cost.flops.attention == hand.attention  # the true area of the rectangles
    assert cost.flops.linear == pytest.approx(hand.linear, rel=0.02)  # the rest is embeddings and modulation
    assert cost.plan.num_tokens == kept + streamed
    if causal:
        reused = evaluation_cost(model, sizes, layout, MIXED, kept=True)
        assert reused.flops.attention == 4 * 1536 * 6 * streamed * (kept + streamed)
        assert reused.flops.linear == pytest.approx(hand_count(1536, 6, streamed, 0).linear, rel=0.02)
        alone = evaluation_cost(model, sizes, layout.memory, MIXED)
        assert alone.flops.attention + reused.flops.attention == cost.flops.attention


def test_operations_are_those_that_torch_counts_in_a_real_forward_pass():
    model, inputs = network("cpu"), window(batch=1)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs)
    assert evaluation_cost(network(), SIZES, LAYOUT, FLOAT32, on_cpu=True).flops.total == counter.get_total_flops()


def test_a_training_computes_three_times_the_products_and_three_and_a_half_times_the_attention():
    sizes = Sizes((4, 24, 24), (5, 8), (4, 7))
    forward = evaluation_cost(network(), sizes, LAYOUT, FLOAT32).flops
    cost = training_cost(network(), sizes, LAYOUT, FLOAT32)
    assert cost.flops.total == pytest.approx(forward.training, rel=0.02)  # less what the inputs would need
    full = training_cost(network(checkpointing="full"), sizes, LAYOUT, FLOAT32)
    assert full.flops.attention == cost.flops.attention + forward.attention


def test_costs_grow_with_the_batch():
    one, three = (training_cost(network(), SIZES, LAYOUT, MIXED, batch) for batch in (1, 3))
    weights = 2 * sum(p.numel() for p in network().parameters())
    assert 0.8 * weights < one.copied_bytes == three.copied_bytes < weights
    tables = 3 * one.saved_bytes - three.saved_bytes  # rotary angles, which samples share
    assert 0 < tables < 0.1 * one.saved_bytes
    assert three.flops.attention == 3 * one.flops.attention


def test_features_of_memory_are_counted_as_they_are_kept():
    latents, _, conditions, memory = window(batch=1, layout=LAYOUT.memory)
    with torch.no_grad():
        features = network("cpu").encode_memory(latents, conditions, memory)
    kept = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in (*features.keys, *features.values)}
    cost = evaluation_cost(network(), SIZES, LAYOUT.memory, FLOAT32)
    assert cost.result_bytes == sum(kept.values())
    assert cost.plan.num_tokens == sum(segment.num_frames * (6 + 4) + 5 for segment in MEMORY)


def test_frozen_weights_have_no_gradient_to_compute():
    whole, frozen = network(), network()
    for parameter in frozen.single_blocks.parameters():
        parameter.requires_grad_(False)
    costs = [training_cost(model, SIZES, LAYOUT, FLOAT32) for model in (whole, frozen)]
    assert costs[1].flops.linear < costs[0].flops.linear
    assert costs[1].saved_bytes < costs[0].saved_bytes


def test_measuring_leaves_the_network_as_it_was():
    model = network()
    training_cost(model, SIZES, LAYOUT, Precision("bf16-true"))
    evaluation_cost(model, SIZES, LAYOUT, MIXED)
    assert all(p.requires_grad and p.grad is None and p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize(("setting", "name"), [(None, "32-true"), (32, "32-true"), ("bf16", "bf16-mixed"), ("bf16-true", "bf16-true")])
def test_precision_is_read_as_the_trainer_reads_it(setting, name):
    assert Precision.of(setting).name == name


def test_other_precisions_are_refused():
    with pytest.raises(UserError, match=r"trainer\.precision is '16-mixed'.*32-true, bf16-mixed and bf16-true"):
        Precision.of("16-mixed")


def test_flops_are_a_record():
    assert dataclasses.astuple(Flops(1, 2) + Flops(3, 4)) == (4, 6)
    assert Flops(1, 2).training == 10
