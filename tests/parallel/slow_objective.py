"""An objective one rank of which makes no batch any more: what a hanging file system looks like."""

import dataclasses
import os
import time

from ablax.objectives.causal import CausalConfig


@dataclasses.dataclass(frozen=True)
class SlowCausal(CausalConfig):
    """`causal`, until the row that STUCK_ROW names comes to the process that STUCK_RANK names."""

    def transform(self, row, rng, vocabulary):
        """See `CausalConfig.transform`."""
        if os.environ.get("STUCK_RANK") == os.environ["ABLAX_PROCESS_ID"]:
            key = rng.bit_generator.state["state"]["counter"][3]
            if key >= int(os.environ["STUCK_ROW"]):
                time.sleep(3600)
        return super().transform(row, rng, vocabulary)
