"""Multi-coil reconstruction beside its peers: the same held-out slices, masks and sensitivities; networks with equal steps.

python -m benchmarks.multicoil [--patients 16] [--steps 300] [--slices 8] [--home FOLDER]

The cohort ``synthetic-brain-multicoil`` is generated, ingested and curated in the folder, which a later call reuses. Stage 4 is
trained from random weights; a U-Net on the same first image (fastMRI's baseline, after SENSE instead of zero filling) and a VarNet
of four cascades (Sriram et al., arXiv:2004.06688, sensitivities given) see the reconstruction samples of the same batches. Weights
of compressed sensing are the best of five on training slices, by mask and method. ``bart pics`` (Debian's bart) is left out where
it is not installed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import sigpy.mri
import torch
from monai.networks.nets import BasicUNet
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.harness import versions, write_rows
from benchmarks.specialists import FEATURES, RATE, reconstruct
from benchmarks.stages import Row, print_rows
from components.catalog import load_card
from components.curation.coil_data import read_undersampled
from components.curation.corpus import STORE, Corpus
from components.curation.curate_corpus import curate
from components.evaluation import metrics
from components.evaluation.baselines import total_variation
from components.evaluation.model_answers import AnswerGenerator, Case, load_cases
from components.evaluation.sweep import INSTRUCTION
from components.home import Home
from components.ingestion import ingest
from components.provenance import digest
from components.registries import STAGES
from components.samples import build_sample
from components.settings import MaskKind, Settings, load_settings
from components.tasks.base import Target
from components.tasks.measurements import stack_measurements
from components.training import StageResult, train_stage
from components.training.batches import StageBatches
from components.training.samples import Samples
from model_core import OmniMRIForConditionalGeneration
from model_core.losses.pixels import structural_dissimilarity
from model_core.mri_physics.fourier import ifft2c_numpy
from model_core.mri_physics.sampling_masks import create_mask
from model_core.mri_physics.sense import KSpaceMeasurement
from model_core.processing import Processor
from model_core.targets import TARGET_IMAGE

CARD = "synthetic-brain-multicoil"
KINDS: tuple[MaskKind, ...] = ("random", "equispaced", "magic")
FACTORS = (4, 6)
WEIGHTS = (0.00003, 0.0001, 0.0003, 0.001, 0.003)
"""Candidate weights of the regularization, for k-space with a maximum of 1."""
TUNING_SLICES, ITERATIONS, CASCADES = 3, 100, 4
Image = NDArray[np.float32]
Solve = Callable[[Target, float], Image]


class VarNet(nn.Module):
    """Cascades of a gradient step towards the measurement and a small U-Net on the complex image."""

    def __init__(self) -> None:
        super().__init__()
        self.networks = nn.ModuleList(BasicUNet(2, 2, 2, features=(8, 8, 16, 32, 64, 8)) for _ in range(CASCADES))
        self.steps = nn.Parameter(torch.ones(CASCADES))

    def forward(self, measured: KSpaceMeasurement) -> Tensor:
        """Return magnitude images (B, 1, H, W)."""
        image = measured.adjoint()
        scale = image.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-6)
        for step, network in zip(self.steps, self.networks, strict=True):
            residual = measured.adjoint(measured.encode(image) - measured.kspace_BCDHW)
            refined = network(torch.view_as_real(image[:, 0] / scale[:, 0]).movedim(-1, 1)).movedim(1, -1).contiguous()
            image = image - step * residual + torch.view_as_complex(refined)[:, None] * scale
        return image.abs()


def prepare(home: Home, settings: Settings, patients: int) -> Corpus:
    """Generate, ingest and curate the cohort, or reuse it."""
    card = load_card(CARD)
    build_sample(card, home.root / "source", patients)
    ingest(card, home.root / "source", home.data, b"benchmark of multi-coil data....")
    curate(home.data, [card], home.curated, settings.curation)
    return Corpus.open(home.curated)


def train_peers(batches: StageBatches, steps: int) -> tuple[nn.Module, nn.Module, int]:
    """Train U-Net and VarNet on the reconstructions of the batches; return them and the number of samples that they saw."""
    torch.manual_seed(0)
    networks: tuple[nn.Module, ...] = (BasicUNet(2, 1, 1, features=FEATURES), VarNet())
    optimizers = [torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.01) for network in networks]
    schedules = [torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1) for optimizer in optimizers]
    seen = 0
    for step in range(steps):
        for batch in batches[step]:
            kept = batch.target_kind_B == TARGET_IMAGE
            seen += int(kept.sum())
            if not kept.any():
                continue
            target = batch.target_B1DHW[kept][:, :, 0]
            images = reconstruct(networks[0], batch.pixel_values_B1DHW[kept][:, :, 0]), networks[1](batch.measured.rows(kept))
            for image, network, optimizer in zip(images, networks, optimizers, strict=True):
                optimizer.zero_grad()
                loss = 10 * (image - target).abs().mean() + structural_dissimilarity(image, target).mean()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
        for schedule in schedules:
            schedule.step()
    return networks[0].eval(), networks[1].eval(), seen


def solve_wavelet(target: Target, weight: float) -> Image:
    """Reconstruct with sigpy's L1-wavelet compressed sensing."""
    scale, sampling = float(np.abs(target.kspace).max()), target.sampling[None].astype(np.float32)
    np.random.seed(0)  # of the power iteration
    options = {"weights": sampling, "max_iter": ITERATIONS, "show_pbar": False}
    result = sigpy.mri.app.L1WaveletRecon(target.kspace / scale, target.coil_maps, weight, **options).run()
    return np.asarray(np.abs(result) * scale, dtype=np.float32)


def solve_bart(target: Target, weight: float) -> Image:
    """Reconstruct with ``bart pics -l1`` (wavelets); its files are column-major complex64 (read, phase, slice, coil)."""
    scale = float(np.abs(target.kspace).max())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, values_CHW in (("kspace", target.kspace / scale), ("maps", target.coil_maps)):
            coils, rows, columns = values_CHW.shape  # type: ignore[union-attr]
            (folder / f"{file}.hdr").write_text(f"# Dimensions\n{rows} {columns} 1 {coils}\n")
            stored = np.asarray(values_CHW, dtype=np.complex64).transpose(1, 2, 0).ravel(order="F")
            (folder / f"{file}.cfl").write_bytes(stored.tobytes())
        command = ["bart", "pics", "-S", "-l1", f"-r{weight}", f"-i{ITERATIONS}", "kspace", "maps", "image"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        image = np.fromfile(folder / "image.cfl", dtype=np.complex64).reshape(target.sampling.shape, order="F")
    return np.asarray(np.abs(image) * scale, dtype=np.float32)


def undersample_case(case: Case, kind: MaskKind, factor: int, corpus: Corpus) -> Case:
    """Return a held-out slice under a mask."""
    record = case.record.model_copy(update={"instruction": INSTRUCTION, "acceleration": factor})
    seed = int(digest(kind, factor, record.volume_id, record.slice_index)[:12], 16)
    mask = create_mask(kind, case.image.shape[1], factor, seed)
    measured = read_undersampled(corpus.store, record.volume_id, mask, record.slice_index)
    target = replace(case.target, kspace=measured.kspace, sampling=measured.sampling, coil_maps=measured.coil_maps)
    return replace(case, record=record, image=measured.image, target=target)


def cases_of(corpus: Corpus, split: str, count: int) -> list[Case]:
    """Return different slices of a split, evenly spaced in the corpus."""
    records = [record for record in corpus.instructions if record.task == "reconstruction" and record.split == split]
    unique = list({(record.volume_id, record.slice_index): record for record in records}.values())
    return load_cases(corpus, unique[:: max(len(unique) // count, 1)][:count])


def score(images: Sequence[Image], cases: Sequence[Case]) -> tuple[float, float]:
    """Return mean PSNR and mean SSIM of the slices; the range is the maximum of the target."""
    pairs = [
        (image[None], case.target.image[None], float(case.target.image.max())) for image, case in zip(images, cases, strict=True)
    ]
    return float(np.mean([metrics.psnr(*pair) for pair in pairs])), float(np.mean([metrics.ssim(*pair) for pair in pairs]))


def compressed_sensing() -> dict[str, Solve]:
    """Return name -> solver of the peers without training that are installed."""
    peers: dict[str, Solve] = {"sigpy L1-wavelet": solve_wavelet, "sigpy total variation": total_variation}
    if shutil.which("bart"):
        return {**peers, "bart pics": solve_bart}
    print("bart pics is left out: bart is not installed (apt-get install bart)")
    return peers


@torch.no_grad()
def compare(corpus: Corpus, answers: AnswerGenerator, unet: nn.Module, varnet: nn.Module, slices: int) -> Iterator[Row]:
    """Yield PSNR and SSIM of every method by kind of mask and factor."""
    held_out, tuning = cases_of(corpus, "test", slices), cases_of(corpus, "train", TUNING_SLICES)
    for kind in KINDS:
        for factor in FACTORS:
            cases, trained = ([undersample_case(case, kind, factor, corpus) for case in part] for part in (held_out, tuning))
            pixels = torch.from_numpy(np.stack([case.image for case in cases]))[:, None]
            images: dict[str, Sequence[Image]] = {
                "OmniMRI": answers.images(cases, steps=1, samples=1),
                "zero-filled RSS": [np.sqrt((np.abs(ifft2c_numpy(case.target.kspace)) ** 2).sum(0)) for case in cases],
                "SENSE": [case.image for case in cases],
                "U-Net": list(reconstruct(unet, pixels)[:, 0].numpy()),
                "VarNet": list(varnet(stack_measurements([case.target for case in cases]))[:, 0].numpy()),
            }
            for name, solve in compressed_sensing().items():
                by_weight = {w: score([solve(case.target, w) for case in trained], trained)[0] for w in WEIGHTS}
                best = max(by_weight, key=by_weight.__getitem__)
                images[name] = [solve(case.target, best) for case in cases]
            for name, results in images.items():
                psnr, ssim = score(results, cases)
                yield {"mask": kind, "factor": factor, "method": name, "psnr": round(psnr, 2), "ssim": round(ssim, 3)}


def sizes(corpus: Corpus, batches: StageBatches, result: StageResult) -> None:
    """Print bytes per slice and slices per second of the loader."""
    volumes, root = list(corpus.volumes.values()), corpus.root / STORE
    for array in ("coils", "sensitivities", "voxels"):
        total = sum(path.stat().st_size for path in root.glob(f"??/??/*.{array}.b2nd"))
        print(f"{array}: {total / sum(volume.slices for volume in volumes):.0f} bytes a slice")
    started = time.perf_counter()
    loaded = sum(len(batch.target_kind_B) for step in range(20) for batch in batches[step])
    print(f"loader: {loaded / (time.perf_counter() - started):.0f} slices a second; last loss {result.last_loss:.3f}")


def main() -> None:
    """Train, measure, and write ``results/multicoil_cpu.csv``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("patients", 16), ("steps", 300), ("slices", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--home", type=Path, default=Path(".omnimri/multicoil"))
    arguments = parser.parse_args()
    root = arguments.home.resolve()
    home, steps = Home(root, root / "data"), arguments.steps
    settings = load_settings("demo", [f"training.instruction_tuning.steps={steps}", "curation.workers=1"])
    corpus = prepare(home, settings, arguments.patients)
    result = train_stage("instruction_tuning", home.curated, settings, home, None, None)
    processor = Processor.from_pretrained(result.model_dir)
    config = OmniMRIForConditionalGeneration.from_pretrained(result.model_dir).config
    stage = settings.training.stage("instruction_tuning")
    samples = Samples.from_corpus(corpus, "train")
    batches = StageBatches(STAGES["instruction_tuning"], samples, stage, config, processor, settings.seed)
    sizes(corpus, batches, result)
    unet, varnet, seen = train_peers(batches, steps)
    print(f"{steps} steps, {seen} reconstruction samples")
    answers = AnswerGenerator.load(result.model_dir, settings.evaluation, settings.seed)
    rows = print_rows(compare(corpus, answers, unet, varnet, arguments.slices))
    write_rows("multicoil_cpu", [{**row, "steps": steps} for row in rows], versions())


if __name__ == "__main__":
    main()
