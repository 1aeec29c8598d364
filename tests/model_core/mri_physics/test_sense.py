"""Parallel imaging agrees with sigpy's operators and conjugate gradients."""

import numpy as np
import pytest
import sigpy
import torch
from sigpy.mri.linop import Sense

from model_core.mri_physics import sense
from model_core.mri_physics.fourier import fft2c, ifft2c
from model_core.mri_physics.sense import ITERATIONS, PRIOR_WEIGHT, KSpaceMeasurement, enforce_data_consistency, remove_noise

COILS, SIZE = 4, 24


@pytest.fixture
def maps() -> torch.Tensor:
    """Return smooth sensitivities with a sum of squares of 1, (1, C, 1, H, W)."""
    grid = torch.linspace(-1, 1, SIZE)
    centers = torch.tensor([(-1.0, -1.0), (-1.0, 1.0), (1.0, -1.0), (1.0, 1.0)])
    distance = (grid[None, :, None] - centers[:, :1, None]) ** 2 + (grid[None, None] - centers[:, 1:, None]) ** 2
    raw = torch.polar(torch.exp(-distance / 3), centers[:, :1, None] * grid[None, :, None] * 0.5)
    return (raw / raw.abs().square().sum(0).sqrt())[None, :, None]


@pytest.fixture
def sampling() -> torch.Tensor:
    """Sample every second column and the center: twofold acceleration."""
    columns = (torch.arange(SIZE) % 2 == 0) | ((torch.arange(SIZE) - SIZE // 2).abs() < 4)
    return columns.expand(1, 1, SIZE, SIZE)


@pytest.fixture
def image() -> torch.Tensor:
    """Return a complex image of smooth phase, (1, 1, H, W)."""
    torch.manual_seed(0)
    grid = torch.linspace(-1, 1, SIZE)
    return torch.polar(0.5 + torch.rand(SIZE, SIZE), 0.4 * grid[:, None] + 0.3 * grid[None])[None, None]


def _sigpy(maps: torch.Tensor, sampling: torch.Tensor) -> Sense:
    return Sense(maps[0, :, 0].numpy(), weights=sampling[0, 0].numpy().astype(np.float32), ishape=(SIZE, SIZE))


def test_the_operator_and_its_adjoint_are_those_of_sigpy(maps: torch.Tensor, sampling: torch.Tensor, image: torch.Tensor) -> None:
    operator = _sigpy(maps, sampling)
    measured = KSpaceMeasurement(torch.zeros(1, COILS, 1, SIZE, SIZE, dtype=torch.complex64), sampling, maps)
    kspace = measured.encode(image)
    np.testing.assert_allclose(kspace[0, :, 0].numpy(), operator(image[0, 0].numpy()), atol=1e-5)
    adjoint = operator.H(kspace[0, :, 0].numpy())
    np.testing.assert_allclose(measured.adjoint(kspace)[0, 0].numpy(), adjoint, atol=1e-5)


def test_least_squares_are_those_of_sigpy(
    maps: torch.Tensor, sampling: torch.Tensor, image: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same number of conjugate-gradient steps from the same image gives the same image, before noise is removed."""
    monkeypatch.setattr(sense, "NOISE_DEVIATIONS", 0.0)
    kspace = KSpaceMeasurement(torch.empty(0), sampling, maps).encode(image)
    measured = KSpaceMeasurement(kspace, sampling, maps)
    guess = image.abs() * 0.7
    operator = _sigpy(maps, sampling)
    start = torch.polar(guess, measured.phase())[0, 0].numpy()
    solution = start.copy()
    normal = operator.H * operator + PRIOR_WEIGHT * sigpy.linop.Identity((SIZE, SIZE))
    right = operator.H(kspace[0, :, 0].numpy()) + PRIOR_WEIGHT * start
    gradients = sigpy.alg.ConjugateGradient(normal, right, solution, max_iter=ITERATIONS)
    while not gradients.done():
        gradients.update()
    np.testing.assert_allclose(enforce_data_consistency(guess, measured)[0, 0].numpy(), np.abs(solution), atol=2e-4)


def test_the_first_image_is_zero_filled_with_one_coil_and_sigpys_least_squares_with_several(
    maps: torch.Tensor, sampling: torch.Tensor, image: torch.Tensor
) -> None:
    """Also of samples with different numbers of coils in one batch."""
    several = KSpaceMeasurement(KSpaceMeasurement(torch.empty(0), sampling, maps).encode(image), sampling, maps)
    operator, solution = _sigpy(maps, sampling), np.zeros((SIZE, SIZE), np.complex64)
    right = operator.H(several.kspace_BCDHW[0, :, 0].numpy())
    steps = sigpy.alg.ConjugateGradient(operator.H * operator, right, solution, max_iter=ITERATIONS)
    while not steps.done():
        steps.update()
    np.testing.assert_allclose(several.first_image()[0, 0].numpy(), solution, atol=2e-4)
    one = torch.where(sampling, fft2c(image), 0)
    assert torch.equal(KSpaceMeasurement(one[:, None], sampling).first_image(), ifft2c(one))
    padding = torch.zeros(1, COILS - 1, 1, SIZE, SIZE)
    padded = [torch.cat([values[:, None], padding], 1) for values in (one, torch.ones_like(one))]
    mixed = KSpaceMeasurement(
        torch.cat([several.kspace_BCDHW, padded[0]]), sampling.expand(2, -1, -1, -1), torch.cat([maps, padded[1]])
    )
    torch.testing.assert_close(mixed.first_image(), torch.cat([several.first_image(), ifft2c(one)]))


def test_the_phase_is_that_of_the_center_which_has_no_aliasing(sampling: torch.Tensor, image: torch.Tensor) -> None:
    """It is nearer to the true phase than that of the zero-filled image; without a measured center the latter is all there is."""
    grid = torch.linspace(-1, 1, SIZE)
    smooth = torch.polar(image.abs(), (1.5 * grid[:, None] - grid[None] + grid[None] * grid[:, None])[None, None])
    measured = KSpaceMeasurement(torch.where(sampling, fft2c(smooth), 0)[:, None], sampling)

    def error(phase: torch.Tensor) -> float:
        return float(torch.angle(torch.polar(torch.ones_like(phase), phase - torch.angle(smooth))).abs().mean())

    assert error(measured.phase()) < 0.8 * error(torch.angle(measured.adjoint()))
    for missing in (SIZE // 2, SIZE // 2 + 1):  # the center itself, or a neighbor: a single column tells no phase along the row
        gap = sampling & (torch.arange(SIZE) != missing)
        without_center = KSpaceMeasurement(torch.where(gap, fft2c(smooth), 0)[:, None], gap)
        assert torch.equal(without_center.phase(), torch.angle(without_center.adjoint()))


def test_the_center_ends_at_the_first_gap_on_either_side_and_along_both_axes() -> None:
    """Points may be sampled instead of columns: the block around the center is then measured along its own row and column."""
    points = torch.zeros(1, 1, 9, 9, dtype=torch.bool)
    points[..., 2:7, 3:8] = True  # rows 4 +- 2, columns 4 - 1 to 4 + 3
    kspace = torch.arange(1.0, 82).reshape(1, 1, 1, 9, 9).to(torch.complex64)
    block = torch.zeros_like(kspace)
    block[..., 2:7, 3:6] = kspace[..., 2:7, 3:6]
    expected = torch.angle(ifft2c(block[:, 0]))
    torch.testing.assert_close(KSpaceMeasurement(kspace, points).phase(), expected)


def test_the_noise_is_that_of_the_measured_corners(maps: torch.Tensor, sampling: torch.Tensor) -> None:
    """Neither the object nor zeros in place of what was not measured count."""
    torch.manual_seed(3)
    grid = torch.linspace(-1, 1, 64)
    smooth = torch.exp(-4 * (grid[:, None] ** 2 + grid[None] ** 2))[None, None]
    noise = 0.02 * torch.view_as_complex(torch.randn(1, 1, 64, 64, 2))
    columns = (torch.arange(64) % 2 == 0).expand(1, 1, 64, 64)
    measured = torch.where(columns, fft2c(smooth.to(torch.complex64)) + noise, 0)[:, None]
    assert KSpaceMeasurement(measured, columns).noise().item() == pytest.approx(0.02, rel=0.1)
    padded = torch.cat([measured, torch.zeros(1, 3, 1, 64, 64)], 1)  # a sample of one coil beside one of four
    assert KSpaceMeasurement(padded, columns).noise().item() == pytest.approx(0.02, rel=0.1)
    is_center = (torch.arange(64) - 32).abs() < 16
    assert KSpaceMeasurement(measured * is_center, columns).noise().item() == 0


def test_noise_out_of_phase_is_removed_and_signal_of_another_phase_is_kept() -> None:
    """A vessel of opposite phase and one a quarter out of phase stay, as does everything where no noise is known."""
    torch.manual_seed(4)
    phase, truth = torch.linspace(-1, 1, 32).expand(1, 1, 32, 32), torch.zeros(1, 1, 32, 32)
    truth[..., 8:24, 8:24], deviation = 1.0, torch.full((1, 1, 1, 1), 0.05)
    flow = torch.zeros(1, 1, 32, 32)
    flow[..., 10:13, 10:13], flow[..., 18:21, 18:21] = torch.pi, torch.pi / 2
    image = torch.polar(truth, phase + flow) + 0.05 * torch.view_as_complex(torch.randn(1, 1, 32, 32, 2))
    result = remove_noise(image, phase, deviation).abs()
    is_background = truth == 0
    assert result[is_background].mean() < 0.4 * image.abs()[is_background].mean()
    moving = flow != 0
    torch.testing.assert_close(result[moving], image.abs()[moving], atol=0.04, rtol=0)
    torch.testing.assert_close(remove_noise(image, phase, 0 * deviation).abs(), image.abs())


def test_noise_is_removed_only_where_the_center_of_kspace_is_measured(
    maps: torch.Tensor, image: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of two samples has no column beside the center. Its phase is that of an aliased image, so nothing is removed."""
    columns = ((torch.arange(SIZE) % 2 == 0) | ((torch.arange(SIZE) - SIZE // 2).abs() < 4)).expand(2, 1, SIZE, SIZE).clone()
    columns[0, ..., SIZE // 2 + 1] = False
    both = maps.expand(2, -1, -1, -1, -1)
    kspace = KSpaceMeasurement(torch.empty(0), columns, both).encode(image.expand(2, -1, -1, -1))
    measured = KSpaceMeasurement(kspace, columns, both)
    assert measured.has_center_BD[:, 0].tolist() == [False, True] and (measured.noise() > 0).all()
    guess = 0.7 * image.abs().expand(2, -1, -1, -1)
    result = enforce_data_consistency(guess, measured)
    monkeypatch.setattr(sense, "NOISE_DEVIATIONS", 0.0)
    with_all_noise = enforce_data_consistency(guess, measured)
    torch.testing.assert_close(result[0], with_all_noise[0])
    assert not torch.allclose(result[1], with_all_noise[1], rtol=1e-3)


def test_a_wrong_image_is_corrected_by_the_measurement_of_the_coils(
    maps: torch.Tensor, sampling: torch.Tensor, image: torch.Tensor
) -> None:
    measured = KSpaceMeasurement(KSpaceMeasurement(torch.empty(0), sampling, maps).encode(image), sampling, maps)
    initial_error = (0.5 * image.abs() - image.abs()).abs().mean()
    assert (enforce_data_consistency(0.5 * image.abs(), measured) - image.abs()).abs().mean() < 0.1 * initial_error


def test_one_coil_replaces_the_sampled_lines_and_a_map_of_ones_changes_nothing(sampling: torch.Tensor, image: torch.Tensor) -> None:
    kspace = KSpaceMeasurement(torch.empty(0), sampling).encode(image)
    torch.manual_seed(1)
    guess = torch.rand(1, 1, SIZE, SIZE)
    without_maps = enforce_data_consistency(guess, KSpaceMeasurement(kspace, sampling))
    ones = torch.ones(1, 1, 1, SIZE, SIZE, dtype=torch.complex64)
    with_maps = enforce_data_consistency(guess, KSpaceMeasurement(kspace, sampling, ones))
    torch.testing.assert_close(with_maps, without_maps, atol=1e-4, rtol=1e-4)


def test_a_sample_of_one_coil_is_bit_equal_alone_and_beside_one_of_several(maps: torch.Tensor, sampling: torch.Tensor) -> None:
    """Image and gradient are those of the replaced lines, in plain torch, with the phase of the nine central columns."""
    torch.manual_seed(2)
    guess, truth = torch.rand(2, 1, SIZE, SIZE), torch.rand(1, 1, SIZE, SIZE).to(torch.complex64)
    kspace = torch.where(sampling, fft2c(truth), 0)[:, None]

    def corrected(measured: KSpaceMeasurement, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = images.clone().requires_grad_()
        result = enforce_data_consistency(leaf, measured)[-1]
        result.square().sum().backward()
        assert leaf.grad is not None
        return result.detach(), leaf.grad[-1]

    several = KSpaceMeasurement(torch.empty(0), sampling, maps).encode(truth)
    one_of_four = [torch.cat([values, torch.zeros(1, COILS - 1, 1, SIZE, SIZE)], 1) for values in (kspace, torch.ones_like(kspace))]
    mixed = KSpaceMeasurement(
        torch.cat([several, one_of_four[0]]), torch.cat([sampling, sampling]), torch.cat([maps, one_of_four[1]])
    )
    image, gradient = corrected(KSpaceMeasurement(kspace, sampling), guess[1:])
    leaf = guess[1:].clone().requires_grad_()
    center = torch.zeros_like(kspace[:, 0])
    center[..., SIZE // 2 - 4 : SIZE // 2 + 5] = kspace[:, 0, :, :, SIZE // 2 - 4 : SIZE // 2 + 5]
    phase = torch.angle(ifft2c(center))
    expected = ifft2c(torch.where(sampling, kspace[:, 0], fft2c(torch.polar(leaf, phase)))).abs()
    expected.square().sum().backward()
    for found_image, found_gradient in ((image, gradient), corrected(mixed, guess)):
        assert torch.equal(found_image, expected[0].detach()) and torch.equal(found_gradient, leaf.grad[0])  # type: ignore[index]
    assert mixed.has_coils_B.tolist() == [True, False]


def test_samples_without_a_measurement_stay_unchanged(maps: torch.Tensor, sampling: torch.Tensor, image: torch.Tensor) -> None:
    """The second of two samples has no measurement."""
    both = torch.cat([sampling, torch.zeros_like(sampling)])
    kspace = KSpaceMeasurement(torch.empty(0), both, maps.expand(2, -1, -1, -1, -1)).encode(image.expand(2, -1, -1, -1))
    guess = torch.rand(2, 1, SIZE, SIZE)
    result = enforce_data_consistency(guess, KSpaceMeasurement(kspace, both, maps.expand(2, -1, -1, -1, -1)))
    assert torch.equal(result[1], guess[1]) and not torch.allclose(result[0], guess[0])
    untouched = KSpaceMeasurement.empty(guess[:, None])
    assert torch.equal(enforce_data_consistency(guess, untouched), guess)


def test_gradients_reach_the_image(maps: torch.Tensor, sampling: torch.Tensor, image: torch.Tensor) -> None:
    measured = KSpaceMeasurement(KSpaceMeasurement(torch.empty(0), sampling, maps).encode(image), sampling, maps)
    guess = (0.5 * image.abs()).requires_grad_()
    enforce_data_consistency(guess, measured).square().sum().backward()
    assert guess.grad is not None and torch.isfinite(guess.grad).all() and guess.grad.abs().sum() > 0
