"""The moving average of weights: its closed form, swapped in and out, and through a file."""

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


def test_the_window_of_the_exponential_mean_grows_with_the_steps() -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    average = WeightEMA(module, decay=0.9)
    seen = _walk(module, average, 200)
    mean = seen[0]
    for step, weight in enumerate(seen[1:], start=1):
        decay = min(0.9, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * weight
    torch.testing.assert_close(average.weights()["weight"], mean)


@pytest.mark.gpu
def test_a_gpu_computes_the_same_mean_of_rounded_weights() -> None:
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


def test_the_average_replaces_the_weights_and_restores_them() -> None:
    module = nn.Linear(3, 2).to(torch.bfloat16)
    average = WeightEMA(module, decay=0.9)
    _walk(module, average, 5)
    original = module.weight.detach().clone()
    with average.swapped_in():
        assert torch.equal(module.weight, average.weights()["weight"].to(torch.bfloat16))
        assert not torch.equal(module.weight, original)
    assert torch.equal(module.weight, original)
    assert average.weights()["weight"].dtype == torch.float32  # small steps would be lost in bfloat16


def test_a_file_preserves_the_bits(tmp_path: Path) -> None:
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
