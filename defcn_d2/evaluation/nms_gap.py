"""The gain that NMS would still bring: two evaluations of one forward pass."""

import logging
from collections import OrderedDict
from collections.abc import Mapping

from detectron2.evaluation import DatasetEvaluator
from torch import nn

from ..modeling.inference import keep_best
from ..modeling.meta_arch import DeFCN, postprocess
from ..structures import Predictions, Priors
from ..utils.errors import UserError

logger = logging.getLogger(__name__)

# Key of the detections with NMS in the outputs, and suffix of their results.
_SUFFIX = "_nms"


class WithAndWithoutNMS(nn.Module):
    """A ``DeFCN`` in evaluation that gives the same raw detections twice.

    Its outputs have "instances" without NMS, whatever ``MODEL.DEFCN.NMS_TYPE`` says, and
    "instances_nms" with class-wise NMS before the limit on their number.
    """

    def __init__(self, model: nn.Module, nms_thresh: float):
        """
        Args:
            model: a ``DeFCN``, bare or in DistributedDataParallel.
            nms_thresh: IoU above which the lower of two scores of one class is dropped.

        Raises:
            UserError: another model.
        """
        super().__init__()
        self.detector = detector_of(model, "TEST.WITH_NMS", "give its raw detections")
        self.nms_thresh = nms_thresh
        self.training = model.training  # Detectron2 restores it after the evaluation

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Inputs as for ``DeFCN``; per image "instances" and "instances_nms"."""
        images = self.detector.preprocess_image(batched_inputs)
        priors, predictions = self.detector.predict(images.tensor)
        return self.outputs(priors, predictions, images.image_sizes, batched_inputs)

    def outputs(
        self,
        priors: Priors,
        predictions: Predictions,
        image_sizes: list[tuple[int, int]],
        batched_inputs: list[dict],
    ) -> list[dict]:
        """The results of ``forward``, from the predictions of the batch."""
        raw = self.detector.raw_detections(priors, predictions, image_sizes)
        limit = self.detector.max_detections
        without = [keep_best(found, limit) for found in raw]
        suppressed = [keep_best(found, limit, self.nms_thresh) for found in raw]
        return [
            {"instances": a["instances"], "instances" + _SUFFIX: b["instances"]}
            for a, b in zip(
                postprocess(without, batched_inputs),
                postprocess(suppressed, batched_inputs),
                strict=True,
            )
        ]


def detector_of(model: nn.Module, key: str, what: str) -> DeFCN:
    """The detector of a model, bare or in DistributedDataParallel.

    Args:
        key: the key of the config that needs it, and is set True.
        what: what a DeFCN does for it, as in "give its raw detections".

    Raises:
        UserError: another model.
    """
    detector = getattr(model, "module", model)
    if not isinstance(detector, DeFCN):
        raise UserError(
            f"{key} is True, but MODEL.META_ARCHITECTURE is {type(detector).__name__}, which does "
            f"not {what} as DeFCN does; set {key} False"
        )
    return detector


class NMSGapEvaluator(DatasetEvaluator):
    """Evaluates the outputs of ``WithAndWithoutNMS``, and reports the difference.

    The results hold those of ``without`` under their own names (``bbox``), those of
    ``suppressed`` with a suffix (``bbox_nms``), and ``nms_gap``: AP with NMS less AP without.
    """

    def __init__(self, without: DatasetEvaluator, suppressed: DatasetEvaluator):
        """
        Args:
            without, suppressed: two evaluators of the same kind and data set.
        """
        self._without = without
        self._suppressed = suppressed

    def reset(self) -> None:
        self._without.reset()
        self._suppressed.reset()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        missing = [x for x in outputs if "instances" + _SUFFIX not in x]
        if missing:
            raise ValueError(
                f"an output has the keys {sorted(missing[0])}, but not 'instances{_SUFFIX}': "
                "evaluate a WithAndWithoutNMS of the model"
            )
        self._without.process(inputs, [{"instances": x["instances"]} for x in outputs])
        suppressed = [{"instances": x["instances" + _SUFFIX]} for x in outputs]
        self._suppressed.process(inputs, suppressed)

    def evaluate(self) -> OrderedDict | None:
        """On the main process the results of both; elsewhere None or empty, as the evaluators'."""
        logger.info("Evaluating without NMS")
        without = self._without.evaluate()
        logger.info("Evaluating the same raw detections with NMS")
        suppressed = self._suppressed.evaluate()
        if not without or not suppressed:
            return without
        results = OrderedDict(without)
        results.update({task + _SUFFIX: scores for task, scores in suppressed.items()})
        results["nms_gap"] = nms_gap(without, suppressed)
        logger.info("NMS gap (AP with NMS - AP without): %.3f", results["nms_gap"])
        return results


def nms_gap(without: Mapping[str, Mapping], suppressed: Mapping[str, Mapping]) -> float:
    """AP with NMS less AP without, of the box task; AP50 where the evaluator gives no AP.

    Args:
        without, suppressed: results, task to metric to score.
    """
    task = "bbox" if "bbox" in without else next(iter(without))
    metric = "AP" if "AP" in without[task] else "AP50"
    return suppressed[task][metric] - without[task][metric]
