"""The average of weights: by its closed form, in place and out again, and through a file."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from components.training.ema import WeightEMA


def _walk(module: nn.Linear, average: WeightEMA, steps: int) -> list[torch.Tensor]:
    seen = []
    for step in range(steps):
        with torch.no_grad():
            module.weight.add_(torch.randn_like(module.weight, generator=None) if step else 0)
        average.update()
        seen.append(module.weight.detach().clone())
    return seen


def test_it_is_the_exponential_mean_whose_window_grows_with_the_steps() -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    average = WeightEMA(module, decay=0.9)
    seen = _walk(module, average, 200)
    mean = seen[0]
    for step, weight in enumerate(seen[1:], start=1):
        kept = min(0.9, (1 + step) / (10 + step))
        mean = kept * mean + (1 - kept) * weight
    torch.testing.assert_close(average.weights()["weight"], mean)


@pytest.mark.gpu
def test_on_a_gpu_it_is_the_same_mean_of_rounded_weights() -> None:
    averages = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        module = nn.Linear(3, 2).to(device, torch.bfloat16)
        average = WeightEMA(module, decay=0.9)
        for _ in range(20):
            with torch.no_grad():
                module.weight.add_(torch.randn(2, 3).to(device, torch.bfloat16))
            average.update()
        averages.append(average.weights()["weight"].cpu())
    torch.testing.assert_close(*averages)


def test_it_stands_in_for_the_weights_and_leaves_them_as_they_were() -> None:
    module = nn.Linear(3, 2).to(torch.bfloat16)
    average = WeightEMA(module, decay=0.9)
    _walk(module, average, 5)
    before = module.weight.detach().clone()
    with average.swapped_in():
        assert torch.equal(module.weight, average.weights()["weight"].to(torch.bfloat16))
        assert not torch.equal(module.weight, before)
    assert torch.equal(module.weight, before)
    assert average.weights()["weight"].dtype == torch.float32  # or small steps would be lost


def test_a_file_keeps_it_to_the_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, copy = nn.Linear(3, 2), nn.Linear(3, 2)
    average = WeightEMA(module, decay=0.9)
    _walk(module, average, 7)
    save_file(average.state(), tmp_path / "average.safetensors")
    resumed = WeightEMA(copy, decay=0.9)
    resumed.load(load_file(tmp_path / "average.safetensors"))
    copy.load_state_dict(module.state_dict())
    average.update(), resumed.update()
    assert torch.equal(average.weights()["weight"], resumed.weights()["weight"])
