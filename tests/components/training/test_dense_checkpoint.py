"""A local Qwen2.5 folder, checkpoint and tokenizer, becomes the start of a network; one that does not fit says why."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2ForCausalLM

from components.errors import BadInput
from components.settings import ModelSettings, load_settings
from components.tracking import Tracking
from components.training import prepare_tokenizer, train_stage
from components.training.dense_checkpoint import DenseCheckpoint, upcycled_model
from components.training.trainer import TrainingJob, initial_model
from model_core.processing import Processor
from model_core.tokenization import IMAGE, SEG, SPECIAL_TOKENS, add_special_tokens, train_tokenizer
from tests.helpers.corpora import tiny_corpus
from tests.helpers.mlflow_store import new_home
from tests.helpers.qwen_checkpoint import QWENS_OWN, SPARE, write_qwen_checkpoint

OURS = [token for token in SPECIAL_TOKENS if token not in (*QWENS_OWN, "<|endoftext|>")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen_checkpoint(tmp_path_factory.mktemp("qwen"))


@pytest.fixture
def tokenizer(folder: Path, tmp_path: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer as training gets it: with our tokens, saved and loaded."""
    Processor(add_special_tokens(AutoTokenizer.from_pretrained(folder, local_files_only=True))).save_pretrained(tmp_path)
    return Processor.from_pretrained(tmp_path).tokenizer


def test_a_folder_in_shards_gives_the_dense_models_logits(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Names, sizes, base of the rotary positions and epsilon of the norms are the checkpoint's."""
    assert len(list(folder.glob("*.safetensors"))) > 1
    model = upcycled_model(folder, "debug", tokenizer).eval()
    dense = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([tokenizer("Is there a lesion? yes, no.", add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, dense(ids).logits, atol=1e-5, rtol=0)


def test_our_tokens_take_entries_that_qwen_has_to_spare(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert all(tokenizer.convert_tokens_to_ids(token) == theirs.convert_tokens_to_ids(token) for token in QWENS_OWN)
    assert [tokenizer.convert_tokens_to_ids(token) for token in OURS] == [len(theirs) + i for i in range(len(OURS))]
    config = upcycled_model(folder, "debug", tokenizer).config
    assert config.vocab_size == len(theirs) + SPARE >= len(tokenizer)
    assert config.seg_token_id == tokenizer.convert_tokens_to_ids(SEG)
    text = f"Is there a lesion 12?{IMAGE} yes"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer("Is 12?")["input_ids"] == theirs("Is 12?")["input_ids"]


def test_a_checkpoint_of_another_size_names_the_preset_that_fits(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(BadInput, match=r"hidden_size 32, preset 128.*set model.preset=debug"):
        upcycled_model(folder, "demo", tokenizer)


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    checkpoint = DenseCheckpoint.open(folder)
    with pytest.raises(BadInput, match="entries, the checkpoint"):
        checkpoint.require_fit(
            "debug", train_tokenizer(["Is there a lesion? " * 9, "The quick brown fox jumps over lazy dogs"], 400)
        )
    with pytest.raises(BadInput, match="ends a text with token"):
        checkpoint.require_fit("debug", train_tokenizer([""], 270))
    with pytest.raises(ValidationError, match="set tokenizer too"):
        ModelSettings(backbone=folder)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no Qwen2 checkpoint"):
        DenseCheckpoint.open(tmp_path)


def test_a_stage_starts_from_the_checkpoint_and_refuses_one_that_does_not_fit(folder: Path, tmp_path: Path) -> None:
    corpus, home = tiny_corpus(tmp_path / "corpus"), new_home(tmp_path / "home")
    settings = load_settings("debug", [f"model.tokenizer={folder}", f"model.backbone={folder}"])
    tokenizer = prepare_tokenizer(corpus.root, settings, home)
    job = TrainingJob(
        stage="vision_pretraining",
        digest="",
        folder=tmp_path,
        corpus=corpus,
        settings=settings,
        tokenizer=tokenizer,
        parent_model=None,
        run_id="",
        tracking=Tracking(home.tracking_uri, home),
    )
    model = initial_model(job, Processor.from_pretrained(tokenizer))
    dense = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(model.backbone.embed_tokens.weight, dense.model.embed_tokens.weight)
    wrong = load_settings("debug", [f"model.tokenizer={folder}", f"model.backbone={folder}", "model.preset=demo"])
    with pytest.raises(BadInput, match=r"set model\.preset=debug"):  # before any process is started, and any run recorded
        train_stage("vision_pretraining", corpus.root, wrong, home, None, None)
