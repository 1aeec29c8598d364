"""Whatever ZeRO shares out, two processes train what one trains: losses, gradient norms, weights.

Every stage, so with volumes and studies (3 and 4), with frozen parts (2 and 3), with a process whose samples ask for no image (4: a
sample each), and with an expert that no token is sent to. By hand: ``pytest --run-slow tests/components/training/test_parity.py``,
five minutes.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from components.files import read_lines
from components.home import Home
from components.registries import STAGES
from components.settings import StageName, load_settings
from components.training import StageResult, prepare_tokenizer, train_stage
from model_core import OmniMRIForConditionalGeneration
from model_core.processing import Processor
from model_core.tokenization import special_ids
from tests.helpers.corpora import tiny_corpus
from tests.helpers.forked import ForkedLauncher
from tests.helpers.mlflow_store import new_home

SAMPLES: dict[StageName, int] = {"vision_pretraining": 8, "alignment": 8, "multimodal_pretraining": 4, "instruction_tuning": 2}


@pytest.fixture(scope="module")
def corpus_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_corpus(tmp_path_factory.mktemp("corpus")).root


@pytest.fixture(scope="module")
def parent(corpus_root: Path, tmp_path_factory: pytest.TempPathFactory) -> StageResult:
    """A model of eight experts whose routers look along one line: two see what lies ahead, two what lies behind, four nothing."""
    from model_core import OmniMRIConfig

    folder = tmp_path_factory.mktemp("parent")
    processor = Processor.from_pretrained(prepare_tokenizer(corpus_root, load_settings("debug"), Home(folder, folder / "data")))
    torch.manual_seed(0)
    ids = special_ids(processor.tokenizer)
    model = OmniMRIForConditionalGeneration(OmniMRIConfig.from_preset("debug", len(processor.tokenizer), num_experts=8, **ids))
    with torch.no_grad():
        for layer in model.backbone.layers:
            line = layer.mlp.gate.weight[0].clone()
            layer.mlp.gate.weight.zero_()
            layer.mlp.gate.weight[:4] = torch.stack([line, -line, 0.9 * line, -0.9 * line])
    model.save_pretrained(folder / "model")
    return StageResult("vision_pretraining", "parent", folder, folder / "model", "", False, None, 1, 0, 0, 0, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES.built_in)
def test_two_processes_train_what_one_trains_at_every_zero_stage(
    corpus_root: Path, parent: StageResult, tmp_path: Path, stage: StageName, capsys: pytest.CaptureFixture[str]
) -> None:
    def trained(processes: int, zero_stage: int) -> StageResult:
        home = new_home(tmp_path / f"{processes}-{zero_stage}")
        # A small rate: the routers of the experts that see nothing are all but equal, and one rounding more sends tokens elsewhere.
        sizes = {"steps": 5, "warmup_steps": 0, "learning_rate": 1e-4, "micro_batch": SAMPLES[stage] // processes}
        overrides = [f"training.{stage}.{name}={value}" for name, value in sizes.items()]
        if "instruction" in STAGES[stage].categories:  # two of the five steps
            overrides += [f"training.{stage}.volume_steps=0.4", f"training.{stage}.volume_slices=4"]
        overrides += [f"training.processes={processes}", f"training.zero_stage={zero_stage}"]
        return train_stage(stage, corpus_root, load_settings("debug", overrides), home, parent, None, ForkedLauncher())

    alone = trained(1, 0)
    if stage == "instruction_tuning":
        load = read_lines(alone.folder / "expert_load.jsonl")[0]["load"]
        assert any(share == 0 for layer in load for share in layer), load
    start = load_file(parent.model_dir / "model.safetensors")
    curve, weights = read_lines(alone.folder / "curve.jsonl"), load_file(alone.model_dir / "model.safetensors")
    for zero_stage in range(4):
        shared = trained(2, zero_stage)
        theirs, others = read_lines(shared.folder / "curve.jsonl"), load_file(shared.model_dir / "model.safetensors")
        assert others.keys() == weights.keys()
        loss = max(abs(a["loss"] - b["loss"]) for a, b in zip(curve, theirs, strict=True))
        norm = max(abs(a["gradient_norm"] / b["gradient_norm"] - 1) for a, b in zip(curve, theirs, strict=True))
        moved, apart = (
            sum(float((ours[name] - weights[name]).square().sum()) for name in weights) ** 0.5 for ours in (start, others)
        )
        with capsys.disabled():
            print(
                f"\n{stage} ZeRO-{zero_stage}: loss {loss:.1e}, gradient norm {norm:.1e}, weights {apart / moved:.1e} of their way"
            )
        # Adam moves a weight without an effect (a bias before a standardisation) by the sign of a rounding error.
        assert loss < 1e-5 and norm < 1e-4 and apart < 0.1 * moved
