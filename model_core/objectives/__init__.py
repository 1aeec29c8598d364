"""The losses of the four training stages (paper section 4), one module per stage."""

from model_core.objectives.alignment import Alignment
from model_core.objectives.base import LossOutput, Objective
from model_core.objectives.instruction_tuning import InstructionTuning
from model_core.objectives.multimodal_pretraining import MultimodalPretraining
from model_core.objectives.vision_pretraining import VisionPretraining

__all__ = ["Alignment", "InstructionTuning", "LossOutput", "MultimodalPretraining", "Objective", "VisionPretraining"]
