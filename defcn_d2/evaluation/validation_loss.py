"""The losses of a detector on the data that it is evaluated on."""

from collections import defaultdict

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

from ..modeling.batch_checks import check_ground_truths
from ..modeling.criterion import SummedCriterion
from ..modeling.meta_arch import DeFCN
from ..structures import Predictions, Priors
from .nms_gap import WithAndWithoutNMS, detector_of

_KEY = "loss_sums"


class WithLosses(nn.Module):
    """A detector in evaluation that gives the losses of each image beside its detections.

    One pass of the network serves both. A criterion of a set of predictions that the head gives in
    training alone has no losses here.
    """

    def __init__(self, model: nn.Module):
        """
        Args:
            model: a ``DeFCN``, bare or in DistributedDataParallel, or ``WithAndWithoutNMS`` of it.

        Raises:
            UserError: another model.
        """
        super().__init__()
        if not isinstance(model, WithAndWithoutNMS):
            model = detector_of(model, "TEST.LOSS", "give its losses in evaluation")
        self.model: DeFCN | WithAndWithoutNMS = model
        self.detector = model.detector if isinstance(model, WithAndWithoutNMS) else model
        self.training = model.training  # Detectron2 restores it after the evaluation

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Outputs of the model, whose images have ``instances`` as in training.

        Images without them, which could not be loaded, have no losses.
        """
        detector = self.detector
        images = detector.preprocess_image(batched_inputs)
        priors, sets = detector.predict_all(images.tensor)
        main = detector.for_inference(sets)
        outputs = self.model.outputs(priors, main, images.image_sizes, batched_inputs)
        for number, (item, output) in enumerate(zip(batched_inputs, outputs, strict=True)):
            if "instances" in item:
                own = {name: predictions[number][None] for name, predictions in sets.items()}
                output[_KEY] = self._loss_sums(priors, own, item)
        return outputs

    def _loss_sums(
        self, priors: Priors, sets: dict[str, Predictions], item: dict
    ) -> dict[str, np.ndarray]:
        """Name of a loss to (2,) float64: its total and its count in an image."""
        check_ground_truths([item], sets["main"].cls_logits.shape[2])
        gt = [item["instances"].to(self.detector.device)]
        sums = {}
        for criterion in self.detector.criteria:
            assert isinstance(criterion, SummedCriterion)
            if criterion.predictions in sets:
                sums.update(criterion.loss_sums(priors, sets[criterion.predictions], gt))
        pairs = [torch.stack([x.total.double(), x.count.double()]) for x in sums.values()]
        return dict(zip(sums, torch.stack(pairs).cpu().numpy()))


class LossEvaluator(DatasetEvaluator):
    """``val_loss`` and its parts, ``val_loss_cls`` and so on, of the outputs of ``WithLosses``.

    Each part is divided by the count of the whole data set, as that of a batch is in training: the
    figures depend on neither the batches nor the number of processes.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._sums: dict[str, np.ndarray] = {}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for output in outputs:
            for name, pair in output.get(_KEY, {}).items():
                self._sums[name] = self._sums.get(name, 0) + pair

    def evaluate(self) -> dict[str, float]:
        """The figures, on the main process."""
        parts = comm.gather(self._sums, dst=0)
        if not comm.is_main_process():
            return {}
        sums: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
        for part in parts:
            for name, pair in part.items():
                sums[name] = sums[name] + pair
        losses = {
            f"val_{name}": float(total / max(count, 1)) for name, (total, count) in sums.items()
        }
        return {"val_loss": sum(losses.values()), **losses} if losses else {}
