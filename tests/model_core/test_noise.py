"""The random numbers of a sample depend on its seed alone."""

import pytest
import torch

from model_core.noise import Noise

CPU = torch.device("cpu")


def test_random_numbers_do_not_depend_on_the_batch() -> None:
    batch = Noise(torch.tensor([5, 2**62, 7]), 3, CPU)
    single = Noise(torch.tensor([7]), 1, CPU)
    for draw in (lambda noise: noise.uniform(4), lambda noise: noise.normal(2, 3), lambda noise: noise.times()):
        torch.testing.assert_close(draw(batch)[2:], draw(single), atol=0, rtol=0)


def test_without_seeds_pytorchs_global_generator_is_used() -> None:
    torch.manual_seed(3)
    noise = Noise(None, 2, CPU).normal(4)
    torch.manual_seed(3)
    assert torch.equal(noise, torch.stack([torch.randn(4), torch.randn(4)]))


def test_times_are_logit_normal_with_a_share_of_pure_noise() -> None:
    """Median 1/2, quartiles at the sigmoid of the quartiles of a normal variable."""
    times = Noise(torch.tensor([0]), 1, CPU).times(20_000, share_of_noise=0.3)[0]
    assert float((times == 1).float().mean()) == pytest.approx(0.3, abs=0.02)
    quartiles = torch.quantile(times[times < 1], torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(quartiles, torch.tensor([-0.6745, 0.0, 0.6745]).sigmoid(), atol=0.02, rtol=0)
