"""Inference: answer an instruction about an image, in the image's own geometry."""

from components.inference.dicom_output import save_dicom
from components.inference.prediction import Prediction, save
from components.inference.predictor import Predictor
from components.inference.question import Progress, Sampling
from components.model_files import resolve_model

__all__ = ["Prediction", "Predictor", "Progress", "Sampling", "resolve_model", "save", "save_dicom"]
