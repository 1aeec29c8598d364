"""The samplers agree with diffusers' schedulers, and with flows that have a closed-form solution."""

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from torch import Tensor

from model_core.flow import SAMPLERS, Sampler, integrate, interpolate, sample_noise

STEPS = 5
CLEAN = torch.linspace(-1, 1, 12).view(2, 6)


def _velocity(state: Tensor, time: float) -> Tensor:
    """Return the velocity of a network that predicts the clean target from state and time with an error."""
    predicted = CLEAN + 0.3 * torch.sin(3 * state) * time
    return (state - predicted) / time


def test_euler_agrees_with_diffusers() -> None:
    """Same sigmas, same steps, same velocity: the same state after every step."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[step / STEPS for step in range(STEPS, 0, -1)])
    noise = sample_noise([0, 1], (6,))[0]
    state, our_states, their_states = noise, [], []

    def record(state: Tensor, time: float) -> Tensor:
        our_states.append(state)
        return _velocity(state, time)

    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        their_states.append(state)
        state = scheduler.step(_velocity(state, float(sigma)), timestep, state).prev_sample
    end = integrate(record, noise, STEPS, "euler")
    torch.testing.assert_close(torch.stack([*our_states, end]), torch.stack([*their_states, state]))


def test_heun_agrees_with_diffusers() -> None:
    """diffusers' sigmas are not evenly spaced at the end; set ours in the form in which the scheduler stores them."""
    scheduler = FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(STEPS)
    sigmas = torch.tensor([step / STEPS for step in range(STEPS, 0, -1)])
    scheduler.timesteps = torch.cat([sigmas[:1], sigmas[1:].repeat_interleave(2)]) * 1000
    scheduler.sigmas = torch.cat([sigmas[:1], sigmas[1:].repeat_interleave(2), torch.zeros(1)])
    scheduler.set_begin_index(0)
    noise = sample_noise([0, 1], (6,))[0]
    state = noise
    for timestep in scheduler.timesteps:
        state = scheduler.step(_velocity(state, float(timestep) / 1000), timestep, state).prev_sample
    torch.testing.assert_close(integrate(_velocity, noise, STEPS, "heun"), state)


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2)])
def test_the_error_falls_with_the_order_of_the_sampler(sampler: Sampler, order: int) -> None:
    """``dy/dt = y`` from y(1) = e ends at y(0) = 1. Twice the steps: half the error with Euler; a quarter with Heun, whose last
    step is an Euler step of second-order error."""

    def error(steps: int) -> float:
        end = integrate(lambda state, time: state, torch.tensor([math.e], dtype=torch.float64), steps, sampler)
        return abs(float(end) - 1)

    assert error(64) / error(128) == pytest.approx(2**order, rel=0.05)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_straight_flow_needs_one_step(sampler: Sampler) -> None:
    """A perfect prediction of the target is reached exactly with any number of steps."""
    noise = sample_noise([3, 4], (6,))[0]
    for steps in (1, 2, 7):
        torch.testing.assert_close(integrate(lambda y, t: (y - CLEAN) / t, noise, steps, sampler), CLEAN)


def test_the_path_has_the_velocity_of_the_training_target() -> None:
    noise, time = torch.randn(2, 6), torch.tensor([0.25, 0.75])
    step = 1e-2
    slope = (interpolate(CLEAN, noise, time + step) - interpolate(CLEAN, noise, time)) / step
    torch.testing.assert_close(slope, noise - CLEAN, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(interpolate(CLEAN, noise, torch.tensor([0.0, 1.0])), torch.stack([CLEAN[0], noise[1]]))


def test_noise_depends_on_the_seed_alone() -> None:
    """Other samples, the index in the batch and the number of draws change no bit."""
    batch = sample_noise([7, 8, 9], (2, 3), draws=3)
    assert batch.shape == (3, 3, 2, 3)
    assert torch.equal(sample_noise([9], (2, 3), draws=2)[:, 0], batch[:2, 2])
    assert not torch.equal(batch[0], batch[1])
    assert batch.flatten().unique().numel() == batch.numel()


def test_an_unknown_sampler_is_rejected() -> None:
    with pytest.raises(ValueError, match="at least one step of euler or heun"):
        integrate(_velocity, CLEAN, 0)
    with pytest.raises(ValueError, match="'midpoint'"):
        integrate(_velocity, CLEAN, 1, "midpoint")  # type: ignore[arg-type]
