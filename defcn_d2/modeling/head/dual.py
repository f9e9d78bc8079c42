"""Two predictors: one is deployed, the other gives training more positives."""

from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode
from torch import Tensor

from ...config.components import own_node
from ...config.rules import check_argument, one_of
from ...structures import Predictions, Priors
from .build import HEAD_REGISTRY
from .dense import DeFCNHead

ONE_TO_MANY = "one_to_many"


@HEAD_REGISTRY.register()
class DualHead(DeFCNHead):
    """The dense head, and in training a second predictor for one-to-many assignment.

    The set "main" is that of the dense head. The second predictor gives the set "one_to_many" to
    the auxiliary criterion, from the same towers (arXiv 2211.13859) or from its own (arXiv
    2405.14458, section 3.1), and begins with the weights of the first. Inference does not run it.
    """

    quality_branch_keys = {ONE_TO_MANY: "ONE_TO_MANY_QUALITY"}
    training_only = (ONE_TO_MANY,)

    def __init__(
        self,
        *,
        own_towers: bool = False,
        detach: bool = False,
        one_to_many_quality: str = "none",
        **shared: Any,
    ):
        """
        Args:
            own_towers: the second predictor has towers of its own.
            detach: the deployed predictor has no gradient for what both share: for the towers, or
                the feature maps if each has its own towers.
            one_to_many_quality: ``quality_branch`` of the second predictor: "none", "filter" or
                "centerness".
        """
        rule = one_of("none", "filter", "centerness")
        check_argument("one_to_many_quality", one_to_many_quality, rule)
        super().__init__(**shared)
        self.own_towers = own_towers
        self.detach = detach
        start = self.state_dict()
        shared["quality_branch"] = one_to_many_quality
        if not own_towers:
            shared["num_convs"] = 0
        self.one_to_many = DeFCNHead(**shared)
        self.one_to_many.load_state_dict(start, strict=False)

    def forward(self, features: list[Tensor], priors: Priors) -> dict[str, Predictions]:
        if not self.training:
            return super().forward(features, priors)
        if self.own_towers:
            many = self.one_to_many(features, priors)["main"]
            main = super().forward(self._deployed(features), priors)["main"]
        else:
            towers = self.towers(features)
            many = self.one_to_many.predictions(self.one_to_many.maps(*towers), priors)
            main = self.predictions(self.maps(*map(self._deployed, towers)), priors)
        return {"main": main, ONE_TO_MANY: many}

    def _deployed(self, features: list[Tensor]) -> list[Tensor]:
        """The features as the deployed predictor reads them."""
        return [x.detach() for x in features] if self.detach else features

    @classmethod
    def problems(cls, cfg: CfgNode, key: str) -> Iterator[str]:
        node = cfg.MODEL.DEFCN
        places = [node, node.AUX] if node.AUX.ENABLED else [node]
        taken = [own_node(place.CRITERION).get("PREDICTIONS", "main") for place in places]
        wanted = ONE_TO_MANY if key == "MODEL.DEFCN.HEAD" else f"aux_{ONE_TO_MANY}"
        if wanted not in taken:
            yield (
                f"{key}.NAME is {cls.__name__!r}, but no criterion takes its set {wanted!r}; set "
                "MODEL.DEFCN.AUX.ENABLED to True, and PREDICTIONS of AUX.CRITERION to the set"
            )
